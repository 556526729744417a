/*
 * The C core: executes a Program (vn_run), and the two questions a Program is planned from (vn_describe,
 * vn_features). It knows no Python, holds no state, and leaves policy and order to whoever made the
 * Program.
 *
 * Ownership: fds that a run opened are in its vn_nic rows from the moment they exist, counted by n_tap and
 * n_vhost. What was made of a NIC that failed is deleted; the others are left to the caller.
 */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>

#include "acts.h"
#include "calls.h"
#include "core.h"
#include "links.h"
#include "netlink.h"
#include "removal.h"
#include "tc.h"

enum {
	NL_LOOKUPS = 16, /* each answer to RTM_GETLINK takes kilobytes of the receive buffer */
	MAX_VID = 4094,
	UNASKED = 4096, /* in the place of a VLAN */
};

static uint64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static bool terminated(const char *name)
{
	return memchr(name, 0, VN_IFNAMSIZ) != NULL;
}

/* ---- the acts, one after the other ----------------------------------------------------------------- */

/* One of an act's messages is refused, and so is the act; the first that is says why. */
static void refuse_message(struct run *run, struct vn_act *act, const struct nlmsghdr *message, int error)
{
	if (act->error <= 0)
		return;
	if (act->op == VN_TC) {
		act->call = bandwidth_call(message);
		nl_words(message, run->nics[act->nic].said, VN_SAID);
	}
	act->error = error;
}

static int take_answer(void *context, uint32_t tag, const struct nlmsghdr *message)
{
	struct run *run = context;
	struct vn_act *act = &run->acts[tag & ~NL_DISPENSABLE];
	int error = 0, rc = message->nlmsg_type == NLMSG_ERROR ? nl_error(message, &error) : 0;

	if (rc <= 0)
		return rc;
	if (tag & NL_DISPENSABLE && (error == -ENOENT || error == -EINVAL))
		error = 0;
	if (error < 0)
		refuse_message(run, act, message, error);
	else if (act->error > 0)
		act->error--;
	return rc;
}

/* Send what the acts wrote, and give each its answer. */
static void send_acts(struct run *run)
{
	uint32_t call = VN_CALL_NONE;
	int lost = nl_exchange(&run->nl, take_answer, run, &call);

	for (uint32_t i = run->first; i < run->next; i++) {
		if (run->acts[i].error <= 0)
			continue;
		run->acts[i].error = lost;
		run->acts[i].call = call;
	}
}

static void delete_acts(struct run *run)
{
	struct doomed doomed[DELETE_BATCH];
	uint32_t n = 0;

	for (uint32_t i = run->first; i < run->next; i++)
		if (run->acts[i].error == UNANSWERED)
			doomed[n++] = (struct doomed){ .nic = &run->nics[run->acts[i].nic] };
	delete_links(&run->nl, doomed, n, true);
	close_fds(doomed, n);
	n = 0;
	for (uint32_t i = run->first; i < run->next; i++) {
		if (run->acts[i].error != UNANSWERED)
			continue;
		run->acts[i].call = doomed[n].call;
		run->acts[i].error = doomed[n++].error;
	}
}

/* An act was refused: 0 when the run goes on without this NIC. */
static int refuse(struct run *run, const struct vn_act *act)
{
	run->nics[act->nic].failed = 1;
	return run->keep ? 0 : act->error;
}

/* Do what was put together since the last flush(); each act has its share of the time. */
static int flush(struct run *run)
{
	uint32_t count = run->next - run->first;
	uint64_t started = now(), each;
	int rc = 0;

	if (count == 0)
		return 0;
	if (run->acts[run->first].op == VN_DELETE)
		delete_acts(run);
	else
		send_acts(run);
	each = (now() - started) / count;
	for (; run->first < run->next; run->first++) {
		struct vn_act *act = &run->acts[run->first];

		act->ns += each;
		if (act->error < 0 && act->error != -ECANCELED && rc == 0)
			rc = refuse(run, act);
	}
	return rc;
}

/* The most that its messages take. */
static size_t room(const struct run *run, const struct vn_act *act)
{
	const struct vn_nic *nic = &run->nics[act->nic];
	uint32_t n = act->op == VN_VLAN_ADD ? nic->n_vlans : 0;
	size_t list = NLMSG_SPACE(sizeof(struct ifinfomsg)) + RTA_LENGTH(0) + n * RTA_SPACE(sizeof(struct vn_vlan));

	if (act->op == VN_TC)
		return bandwidth_room(nic);
	return list > NL_MESSAGE ? list : NL_MESSAGE;
}

static uint32_t messages(const struct run *run, const struct vn_act *act)
{
	return act->op == VN_TC ? bandwidth_messages(&run->nics[act->nic]) : 1;
}

static bool goes_with(const struct run *run, const struct vn_act *act)
{
	uint32_t batch = ACTS[act->op].batch;

	return batch > 0 && !(act->flags & VN_BARRIER) && ACTS[run->acts[run->first].op].batch == batch &&
	       run->next - run->first < batch && run->nl.queued + messages(run, act) <= NL_BATCH &&
	       run->nl.length + room(run, act) <= sizeof(run->nl.out);
}

static int step(struct run *run, uint32_t index)
{
	struct vn_act *act = &run->acts[index];
	bool queued = ACTS[act->op].batch > 0;
	struct vn_nic *nic = &run->nics[act->nic];
	uint32_t before;
	uint64_t started;
	int rc = 0;

	if (run->first < run->next && !goes_with(run, act))
		rc = flush(run);
	if (rc < 0)
		return rc;
	if (run->first == run->next)
		run->first = run->next = index;
	run->next = queued ? index + 1 : index;
	if (nic->failed) {
		act->error = act->error < 0 ? act->error : -ECANCELED;
		return 0;
	}
	before = run->nl.queued;
	started = now();
	act->error = ACTS[act->op].act ? ACTS[act->op].act(run, nic, act) : 0;
	act->ns = now() - started;
	if (act->error < 0 && !(act->flags & VN_OPTIONAL))
		return refuse(run, act);
	if (queued)
		act->error = run->nl.queued > before ? (int32_t)(run->nl.queued - before) : UNANSWERED;
	return 0;
}

static bool sound_bridge(const struct vn_bridge *bridge)
{
	return terminated(bridge->name) && bridge->ifindex <= INT32_MAX && (bridge->ifindex > 0 || bridge->name[0]);
}

static bool sound_nic(const struct vn_nic *nic, uint32_t n_bridges)
{
	return terminated(nic->name) && nic->name[0] && terminated(nic->wish) && memchr(nic->alias, 0, VN_ALIASSIZ) &&
	       nic->queues >= 1 && nic->queues <= VN_MAX_QUEUES && nic->tap_fds && nic->vhost_fds && nic->tap_path &&
	       nic->vhost_path && nic->bridge >= -1 && nic->bridge < (int64_t)n_bridges && terminated(nic->parent);
}

static bool sound_vlans(const struct vn_nic *nic)
{
	if (nic->n_vlans > VN_MAX_VLANS || (nic->n_vlans > 0 && !nic->vlans))
		return false;
	for (uint32_t i = 0; i < nic->n_vlans; i++)
		if (nic->vlans[i].vid < 1 || nic->vlans[i].vid > MAX_VID)
			return false;
	return true;
}

static bool sound_held(const struct vn_nic *nic)
{
	return nic->n_tap >= !nic->macvtap && nic->n_tap <= nic->queues && nic->n_vhost <= nic->queues &&
	       nic->ifindex >= 0;
}

/* The kernel reads 16 bits, and must not take the device for a TUN; IFF_TUN_EXCL is ours to set. */
static bool sound_flags(uint32_t flags)
{
	return flags <= UINT16_MAX && (flags & IFF_TAP) && !(flags & IFF_TUN_EXCL);
}

/* The row has what the act is about. */
static bool sound_for(uint32_t op, const struct vn_nic *nic)
{
	switch (op) {
	case VN_TAP_OPEN:
		return sound_flags(nic->tun_flags) && !nic->adopted && !nic->macvtap;
	case VN_ADOPT:
		return sound_flags(nic->tun_flags) && nic->adopted && !nic->set_mac && !nic->macvtap;
	case VN_MACVTAP:
		return sound_flags(nic->tun_flags) && !nic->adopted && nic->macvtap && nic->set_mac && nic->parent[0];
	case VN_VHOST_OPEN:
	case VN_SELFTEST:
	case VN_ATTACH:
		return true;
	case VN_VLAN_ADD:
	case VN_VLAN_DEL:
		return nic->bridge >= 0 && nic->n_vlans > 0 && !nic->adopted;
	case VN_FDB:
	case VN_UNFDB:
		return (nic->bridge >= 0 || nic->held) && nic->set_fdb && !nic->adopted;
	case VN_COALESCE:
		return !nic->adopted && !nic->macvtap;
	case VN_TC:
		return (nic->held || nic->rate > 0 || nic->police_rate > 0) && !nic->adopted;
	case VN_PERSIST:
		return nic->persist && !nic->adopted && !nic->macvtap && nic->owner >= -1 && nic->owner < UINT32_MAX &&
		       nic->group >= -1 && nic->group < UINT32_MAX;
	case VN_ALTNAME:
	case VN_RENAME:
		return nic->wish[0] != 0 && !nic->adopted;
	default:
		return !nic->adopted;
	}
}

/* One act after those before it. */
static bool sound_act(const struct vn_act *act, const struct vn_program *program)
{
	struct vn_nic *nic;

	if (act->op >= VN_ACTS || act->nic >= program->n_nics || act->flags & ~(uint32_t)(VN_OPTIONAL | VN_BARRIER))
		return false;
	nic = &program->nics[act->nic];
	if ((nic->failed & ACTS[act->op].needs) != ACTS[act->op].needs || nic->failed & ACTS[act->op].bars ||
	    (act->op != VN_VHOST_OPEN && act->flags & VN_OPTIONAL) || !sound_for(act->op, nic))
		return false;
	if (nic->held && nic->n_tap == 0 && act->op != VN_DELETE)
		return false;
	nic->failed |= ACTS[act->op].makes;
	return true;
}

static bool sound_tables(const struct vn_program *program)
{
	return program->n_nics >= 1 && program->n_nics <= INT32_MAX && program->nics && program->n_acts >= 1 &&
	       program->n_acts <= INT32_MAX && program->acts && program->n_bridges <= INT32_MAX &&
	       (program->n_bridges == 0 || program->bridges);
}

/* Refuse a Program that would lead us outside its arrays, or to a NIC that is not there, before the first syscall. */
static int check(const struct vn_program *program)
{
	if (!program || !sound_tables(program))
		return -EINVAL;
	for (uint32_t i = 0; i < program->n_bridges; i++)
		if (!sound_bridge(&program->bridges[i]))
			return -EINVAL;
	for (uint32_t i = 0; i < program->n_nics; i++) {
		struct vn_nic *nic = &program->nics[i];

		if (!sound_nic(nic, program->n_bridges) || !sound_vlans(nic) || !sound_bandwidth(nic) ||
		    (nic->held && !sound_held(nic)))
			return -EINVAL;
		nic->failed = nic->held ? HELD | THERE | (nic->n_vhost > 0 ? VHOST : 0) : 0;
	}
	for (uint32_t i = 0; i < program->n_acts; i++)
		if (!sound_act(&program->acts[i], program))
			return -EINVAL;
	return 0;
}

static void clear_results(struct vn_program *program)
{
	program->undo_error = 0;
	program->undo_call = VN_CALL_NONE;
	for (uint32_t i = 0; i < program->n_nics; i++) {
		struct vn_nic *nic = &program->nics[i];

		nic->failed = 0;
		nic->said[0] = 0;
		if (!nic->held)
			nic->n_tap = nic->n_vhost = 0;
		if (!nic->held)
			nic->ifindex = 0;
	}
	for (uint32_t i = 0; i < program->n_acts; i++) {
		struct vn_act *act = &program->acts[i];

		act->error = 0;
		act->call = VN_CALL_NONE;
		act->queue = -1;
		act->ns = 0;
	}
}

/* A bridge that will not do is the LINK act's to report, or VLAN_ADD's. */
static int blame(struct run *run, const struct vn_program *program, uint32_t nic, uint32_t op, int error, uint32_t call)
{
	struct vn_act *act = &run->acts[0];

	for (uint32_t i = 0; i < program->n_acts; i++) {
		if (run->acts[i].op == op && run->acts[i].nic == nic) {
			act = &run->acts[i];
			break;
		}
	}
	act->error = error;
	act->call = call;
	return refuse(run, act);
}

/* Every bridge that is only named, and room on it for every NIC, before anything is made. */
static int find_bridges(struct run *run, const struct vn_program *program)
{
	bool joins = false;
	int rc = 0;

	for (uint32_t i = 0; i < program->n_nics; i++)
		joins |= !run->nics[i].held;
	for (uint32_t i = 0; i < program->n_bridges; i++) {
		struct vn_bridge *bridge = &run->bridges[i];

		bridge->mtu = bridge->ports = 0;
		bridge->error = bridge->ifindex ? 0 : look_up(run->nl.fd, bridge, joins);
	}
	for (uint32_t i = 0; i < program->n_nics && rc == 0; i++) {
		struct vn_nic *nic = &run->nics[i];
		struct vn_bridge *bridge = nic->bridge < 0 ? NULL : &run->bridges[nic->bridge];

		if (!bridge)
			continue;
		if (nic->mtu == 0)
			nic->mtu = bridge->mtu;
		if (bridge->error < 0)
			rc = blame(run, program, i, VN_LINK, bridge->error, VN_CALL_SIOCGIFINDEX);
		else if (!nic->held && ++bridge->ports > VN_MAX_PORTS)
			rc = blame(run, program, i, VN_LINK, -EXFULL, VN_CALL_BRCTL_GET_PORT_LIST);
	}
	return rc;
}

/* Every link that a macvtap is to be on, before anything is made. */
static int find_parents(struct run *run, const struct vn_program *program)
{
	int rc = 0;

	for (uint32_t i = 0; i < program->n_acts && rc == 0; i++) {
		struct vn_act *act = &run->acts[i];

		if (act->op != VN_MACVTAP)
			continue;
		act->error = look_up_parent(run->nl.fd, &run->nics[act->nic]);
		act->call = VN_CALL_SIOCGIFINDEX;
		if (act->error < 0)
			rc = refuse(run, act);
	}
	return rc;
}

/* That the bridges of NICs that are to be in VLANs heed them: where one does not, a port has all frames of all VLANs.
 */
static int find_vlans(struct run *run, const struct vn_program *program)
{
	int rc = 0;

	for (uint32_t i = 0; i < program->n_bridges; i++)
		run->bridges[i].default_vid = UNASKED;
	for (uint32_t i = 0; i < program->n_nics && rc == 0; i++) {
		struct vn_nic *nic = &run->nics[i];
		struct vn_bridge *bridge = nic->bridge < 0 ? NULL : &run->bridges[nic->bridge];
		uint32_t call = VN_CALL_IFLA_BR_VLAN_FILTERING;

		if (!bridge || nic->n_vlans == 0 || nic->failed)
			continue;
		if (bridge->default_vid == UNASKED)
			bridge->error = ask_vlans(&run->nl, bridge, &call);
		if (bridge->error < 0)
			rc = blame(run, program, i, VN_VLAN_ADD, bridge->error, call);
	}
	return rc;
}

/*
 * Every held NIC that is to be changed by its ifindex, before that is done: that it is ours, here. A caller may be in
 * another network namespace by now, or somebody may have deleted or moved the TAP.
 */
static int claim_held(struct run *run, const struct vn_program *program)
{
	struct stat here = { 0 };
	bool known = false;
	int rc = 0;

	for (uint32_t i = 0; i < program->n_acts && rc == 0; i++) {
		struct vn_act *act = &run->acts[i];
		struct doomed d = { .nic = &run->nics[act->nic], .call = VN_CALL_TUNGETDEVNETNS };

		if (!d.nic->held || d.nic->failed || ACTS[act->op].batch != NL_BATCH)
			continue;
		act->error = known ? 0 : netns_of(run->nl.fd, SIOCGSKNS, &here);
		known = act->error == 0;
		if (known)
			act->error = claim(&run->nl, &d, &here);
		if (d.gone)
			act->error = -EBADFD;
		act->call = d.call;
		if (act->error < 0)
			rc = refuse(run, act);
	}
	return rc;
}

/* The vhost-net fds that this run opened for NICs that are held and failed. */
static void unmake_vhost(struct run *run, const struct vn_program *program)
{
	for (uint32_t i = 0; i < program->n_acts; i++) {
		struct vn_nic *nic = &run->nics[run->acts[i].nic];
		struct vn_nic opened = { .vhost_fds = nic->vhost_fds, .n_vhost = nic->n_vhost };
		struct doomed doomed = { .nic = &opened, .gone = true };

		if (run->acts[i].op != VN_VHOST_OPEN || !nic->held || !nic->failed)
			continue;
		close_fds(&doomed, 1);
		nic->n_vhost = 0;
	}
}

/* The fds of TAPs that are somebody else's. */
static void unadopt(const struct run *run, const struct vn_program *program)
{
	for (uint32_t i = 0; i < program->n_nics; i++) {
		struct doomed doomed = { .nic = &run->nics[i], .gone = true };

		if (doomed.nic->failed && doomed.nic->adopted && !doomed.nic->held)
			close_fds(&doomed, 1);
	}
}

/* Or its link would stay when its fds are closed. */
static void unpersist(const struct vn_nic *nic)
{
	if (nic->persist && nic->n_tap > 0 && !nic->macvtap)
		ioctl_retry(nic->tap_fds[0], TUNSETPERSIST, NULL);
}

/* Delete what this run made of the NICs that failed: by the group, and by closing what the group could not have. */
static void unmake(struct run *run, struct vn_program *program)
{
	struct doomed doomed[DELETE_BATCH];
	uint32_t n = 0;

	for (uint32_t i = 0; i < program->n_nics; i++) {
		struct vn_nic *nic = &run->nics[i];

		if (nic->failed && !nic->held && !nic->adopted &&
		    (nic->n_tap + nic->n_vhost > 0 || (nic->macvtap && nic->ifindex > 0)))
			doomed[n++] = (struct doomed){ .nic = nic };
		if (n == 0 || (n < DELETE_BATCH && i + 1 < program->n_nics))
			continue;
		delete_links(&run->nl, doomed, n, false);
		for (uint32_t d = 0; d < n; d++) {
			if (program->undo_error == 0 && doomed[d].error < 0 && doomed[d].nic->ifindex > 0) {
				program->undo_error = doomed[d].error;
				program->undo_call = doomed[d].call;
			}
			if (doomed[d].error < 0)
				unpersist(doomed[d].nic);
			doomed[d].error = 0; /* so that it is closed */
		}
		close_fds(doomed, n);
		n = 0;
	}
}

/*
 * How many fds there are whose number is less, by the list of them; all of them when not even the list can be opened,
 * and none where nobody tells.
 */
static uint64_t count_files(uint64_t below)
{
	DIR *directory = opendir("/proc/self/fd");
	const struct dirent *entry;
	uint64_t count = 0;

	if (!directory)
		return errno == EMFILE ? below : 0;
	while ((entry = readdir(directory)))
		count += entry->d_name[0] != '.' && strtoull(entry->d_name, NULL, 10) < below;
	closedir(directory);
	return count - 1; /* the directory's own */
}

/* Linux 6.2 and later say at once how many fds there are; the list is for those, and for when it is close. */
static bool fits(uint64_t needed, uint64_t allowed)
{
	struct stat status = { 0 };

	if (stat("/proc/self/fd", &status) == 0 && status.st_size > 0 && (uint64_t)status.st_size + needed <= allowed)
		return true;
	return count_files(allowed) + needed <= allowed;
}

/* Whether all that must be opened fits under RLIMIT_NOFILE, before the first of it is. */
static int check_files(struct run *run, const struct vn_program *program)
{
	uint64_t needed = 0;
	struct rlimit limit;

	for (uint32_t i = 0; i < program->n_acts; i++) {
		const struct vn_act *act = &program->acts[i];

		if (act->op == VN_TAP_OPEN || act->op == VN_ADOPT || act->op == VN_MACVTAP ||
		    (act->op == VN_VHOST_OPEN && !(act->flags & VN_OPTIONAL)))
			needed += program->nics[act->nic].queues;
	}
	if (needed == 0 || run->keep || getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY ||
	    fits(needed, limit.rlim_cur))
		return 0;
	run->acts[0].error = -EMFILE;
	run->acts[0].call = VN_CALL_RLIMIT_NOFILE;
	return -EMFILE;
}

static int keep_macs(struct run *run, const struct vn_program *program)
{
	int rc = 0;

	for (uint32_t i = 0; i < program->n_acts && rc == 0; i++) {
		struct vn_act *act = &run->acts[i];
		struct vn_nic *nic = &run->nics[act->nic];

		if (act->op != VN_LINK || act->error < 0 || nic->failed || nic->held || !nic->set_mac)
			continue;
		act->error = keep_mac(nic, act);
		if (act->error < 0)
			rc = refuse(run, act);
	}
	return rc;
}

/* What a kernel may lack for a bandwidth it says in words alone: the errno is the same for all of it. */
static void ask_for_words(const struct run *run, const struct vn_program *program)
{
	for (uint32_t i = 0; i < program->n_acts; i++)
		if (run->acts[i].op == VN_TC) {
			nl_ask_for_words(&run->nl);
			return;
		}
}

static int run_acts(struct run *run, struct vn_program *program)
{
	int rc = check_files(run, program);

	if (rc == 0)
		rc = find_bridges(run, program);
	if (rc == 0)
		rc = find_parents(run, program);
	if (rc == 0)
		rc = find_vlans(run, program);
	if (rc == 0)
		rc = claim_held(run, program);
	for (uint32_t i = 0; i < program->n_acts && rc == 0; i++)
		rc = step(run, i);
	if (rc == 0)
		rc = flush(run);
	if (rc == 0)
		rc = keep_macs(run, program);
	for (uint32_t i = 0; i < program->n_nics && rc < 0; i++)
		run->nics[i].failed = 1; /* all or none */
	unmake_vhost(run, program);
	unadopt(run, program);
	unmake(run, program);
	return rc;
}

int vn_run(struct vn_program *program)
{
	struct run run; /* its buffer is large, and needs no zeros */
	int rc = check(program);

	if (rc < 0)
		return rc;
	run.nics = program->nics;
	run.acts = program->acts;
	run.bridges = program->bridges;
	run.keep = program->keep != 0;
	run.first = run.next = 0;
	clear_results(program);
	rc = nl_open(&run.nl);
	if (rc < 0) {
		run.acts[0].error = rc;
		run.acts[0].call = VN_CALL_SOCKET;
		for (uint32_t i = 0; i < program->n_nics; i++)
			run.nics[i].failed = 1;
		return rc;
	}
	ask_for_words(&run, program);
	rc = run_acts(&run, program);
	close(run.nl.fd);
	return rc;
}

int vn_close(struct vn_nic *nics, uint32_t n_nics)
{
	struct doomed doomed[DELETE_BATCH];
	uint32_t n = 0;

	for (uint32_t i = 0; i < n_nics; i++) {
		doomed[n++] = (struct doomed){ .nic = &nics[i] };
		if (n < DELETE_BATCH && i + 1 < n_nics)
			continue;
		close_fds(doomed, n);
		n = 0;
	}
	return 0;
}

/* ---- questions ------------------------------------------------------------------------------------- */

int vn_describe(struct vn_link *links, uint32_t n_links, uint32_t *call)
{
	struct netlink nl;
	int rc;

	*call = VN_CALL_SOCKET;
	for (uint32_t i = 0; i < n_links; i++) {
		if (!terminated(links[i].name))
			return -EINVAL;
		memset((char *)&links[i] + VN_IFNAMSIZ, 0, sizeof(links[i]) - VN_IFNAMSIZ);
	}
	rc = nl_open(&nl);
	if (rc < 0)
		return rc;
	for (uint32_t i = 0; i < n_links && rc == 0; i++) {
		put_lookup(&nl, &links[i], i);
		if (nl.queued == NL_LOOKUPS || i + 1 == n_links)
			rc = nl_exchange(&nl, take_link, links, call);
	}
	for (uint32_t i = 0; i < n_links && rc == 0; i++)
		if (strcmp(links[i].kind, "bridge") == 0)
			links[i].ports = count_ports(nl.fd, links[i].name);
	close(nl.fd);
	return rc;
}

int vn_features(const char *path, uint32_t *features, uint32_t *call)
{
	unsigned int word = 0;
	int rc = 0, fd = open_retry(path, O_RDWR | O_CLOEXEC);

	*call = VN_CALL_OPEN;
	if (fd < 0)
		return -errno;
	*call = VN_CALL_TUNGETFEATURES;
	if (ioctl_retry(fd, TUNGETFEATURES, &word) < 0)
		rc = -errno;
	close(fd);
	*features = word;
	return rc;
}
