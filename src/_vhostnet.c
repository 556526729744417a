/*
 * The C core: executes a Program (vn_run), and the two questions a Program is planned from (vn_describe,
 * vn_features). It knows no Python, holds no state, and leaves policy and order to whoever made the
 * Program.
 *
 * Ownership: fds that a run opened are in its vn_nic rows from the moment they exist, counted by n_tap and
 * n_vhost. A run that fails closes exactly those, in reverse; a run that succeeds leaves them to the caller.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <linux/ethtool.h>
#include <linux/if.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <linux/vhost.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>

#include "_vhostnet.h"

_Static_assert(VN_IFNAMSIZ == IFNAMSIZ, "the kernel's interface names have another size");

enum {
	EINTR_TRIES = 16,
	NL_BATCH = 64,	  /* messages of one send: what it holds RTNL for stays short */
	NL_LOOKUPS = 16,  /* each answer to RTM_GETLINK takes kilobytes of the receive buffer */
	NL_MESSAGE = 256, /* more than any message below */
	NL_ANSWER = 16384,
	IPV6_MIN_MTU = 1280,
	RING_ENTRIES = 256,
	RING_BYTES = 16384, /* descriptors 4096, available 518, used 2054 */
};

#define VHOST_NEEDED ((1ULL << VIRTIO_NET_F_MRG_RXBUF) | (1ULL << VIRTIO_F_VERSION_1))

struct netlink {
	int fd;
	uint32_t port;
	uint32_t pending; /* requests without an answer */
	size_t length;
	char out[NL_BATCH * NL_MESSAGE];
};

struct run {
	struct vn_nic *nics;
	struct vn_act *acts;
	uint32_t first; /* acts[first..next) are in the next send */
	uint32_t next;
	struct netlink nl;
};

/* 1: it answers a request of ours, 0: it does not, -errno: it is malformed. */
typedef int answer_fn(void *context, const struct nlmsghdr *message);

/* ---- small helpers ------------------------------------------------------------------------------------ */

static uint64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int refused(struct vn_act *act, uint32_t call)
{
	act->call = call;
	return -errno;
}

static int open_retry(const char *path, int flags)
{
	int fd, tries = EINTR_TRIES;

	do
		fd = open(path, flags);
	while (fd < 0 && errno == EINTR && tries-- > 0);
	return fd;
}

static int ioctl_retry(int fd, unsigned long request, void *argument)
{
	int rc, tries = EINTR_TRIES;

	do
		rc = ioctl(fd, request, argument);
	while (rc < 0 && errno == EINTR && tries-- > 0);
	return rc;
}

static bool terminated(const char *name)
{
	return memchr(name, 0, VN_IFNAMSIZ) != NULL;
}

static void close_vhost(struct vn_nic *nic)
{
	while (nic->n_vhost > 0)
		close(nic->vhost_fds[--nic->n_vhost]);
}

static void close_taps(struct vn_nic *nic)
{
	while (nic->n_tap > 0)
		close(nic->tap_fds[--nic->n_tap]);
}

/* ---- netlink ------------------------------------------------------------------------------------------ */

static int nl_open(struct netlink *nl)
{
	struct sockaddr_nl address = { .nl_family = AF_NETLINK };
	socklen_t size = sizeof(address);

	nl->fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (nl->fd < 0)
		return -errno;
	if (bind(nl->fd, (struct sockaddr *)&address, size) < 0 ||
	    getsockname(nl->fd, (struct sockaddr *)&address, &size) < 0) {
		int rc = -errno;

		close(nl->fd);
		nl->fd = -1;
		return rc;
	}
	nl->port = address.nl_pid;
	return 0;
}

static struct nlmsghdr *nl_begin(struct netlink *nl, uint16_t type, uint16_t flags, uint32_t seq, const void *body,
				 size_t size)
{
	struct nlmsghdr *message = (struct nlmsghdr *)(nl->out + nl->length);

	memset(message, 0, NL_MESSAGE);
	message->nlmsg_len = (uint32_t)NLMSG_LENGTH(size);
	message->nlmsg_type = type;
	message->nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags);
	message->nlmsg_seq = seq;
	memcpy(NLMSG_DATA(message), body, size);
	return message;
}

static struct rtattr *nl_attr(struct nlmsghdr *message, uint16_t type, const void *value, size_t size)
{
	struct rtattr *attribute = (struct rtattr *)((char *)message + NLMSG_ALIGN(message->nlmsg_len));

	attribute->rta_type = type;
	attribute->rta_len = (uint16_t)RTA_LENGTH(size);
	if (size > 0)
		memcpy(RTA_DATA(attribute), value, size);
	message->nlmsg_len = (uint32_t)(NLMSG_ALIGN(message->nlmsg_len) + RTA_LENGTH(size));
	return attribute;
}

static void nl_end_nest(struct nlmsghdr *message, struct rtattr *nest)
{
	nest->rta_len = (uint16_t)((char *)message + message->nlmsg_len - (char *)nest);
}

static void nl_end(struct netlink *nl, const struct nlmsghdr *message)
{
	nl->length += NLMSG_ALIGN(message->nlmsg_len);
	nl->pending++;
}

/* Go through one datagram; answers to somebody else and stray messages are passed over. */
static int nl_parse(struct netlink *nl, const char *data, size_t length, answer_fn *answer, void *context)
{
	while (length >= sizeof(struct nlmsghdr)) {
		const struct nlmsghdr *message = (const struct nlmsghdr *)data;
		size_t size = NLMSG_ALIGN((size_t)message->nlmsg_len);
		int rc = 0;

		if (message->nlmsg_len < sizeof(*message) || message->nlmsg_len > length)
			return -EBADMSG;
		if (message->nlmsg_pid == nl->port)
			rc = answer(context, message);
		if (rc < 0)
			return rc;
		nl->pending -= (uint32_t)rc;
		if (size >= length)
			return 0;
		data += size;
		length -= size;
	}
	return length ? -EBADMSG : 0;
}

static int nl_receive(struct netlink *nl, answer_fn *answer, void *context)
{
	_Alignas(struct nlmsghdr) char data[NL_ANSWER];
	struct sockaddr_nl from = { 0 };
	struct iovec iov = { .iov_base = data, .iov_len = sizeof(data) };
	struct msghdr header = { .msg_name = &from, .msg_namelen = sizeof(from), .msg_iov = &iov, .msg_iovlen = 1 };
	int tries = EINTR_TRIES;
	ssize_t length;

	/* rtnetlink answers inside send(): an answer that is not there now will never come. */
	do
		length = recvmsg(nl->fd, &header, MSG_DONTWAIT);
	while (length < 0 && errno == EINTR && tries-- > 0);
	if (length < 0)
		return -errno;
	if (header.msg_flags & MSG_TRUNC)
		return -EMSGSIZE;
	if (from.nl_pid != 0)
		return 0; /* not from the kernel */
	return nl_parse(nl, data, (size_t)length, answer, context);
}

/* Send what is queued and read every answer; *call says which of the two failed. */
static int nl_exchange(struct netlink *nl, answer_fn *answer, void *context, uint32_t *call)
{
	struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
	size_t length = nl->length;
	int tries = EINTR_TRIES, rc = 0;
	ssize_t sent;

	*call = VN_CALL_SEND;
	do
		sent = sendto(nl->fd, nl->out, length, 0, (struct sockaddr *)&kernel, sizeof(kernel));
	while (sent < 0 && errno == EINTR && tries-- > 0);
	if (sent != (ssize_t)length)
		rc = sent < 0 ? -errno : -EMSGSIZE;
	else
		*call = VN_CALL_RECV;
	while (rc == 0 && nl->pending > 0)
		rc = nl_receive(nl, answer, context);
	nl->length = 0;
	nl->pending = 0;
	return rc;
}

/* ---- one kernel act each: TAP_OPEN --------------------------------------------------------------------- */

static void name_request(struct ifreq *request, const struct vn_nic *nic)
{
	memset(request, 0, sizeof(*request));
	memcpy(request->ifr_name, nic->name, VN_IFNAMSIZ);
}

/* One queue; the first creates the device and must be alone in that. */
static int open_queue(struct vn_nic *nic, struct vn_act *act)
{
	struct ifreq request;
	int fd = open_retry(nic->tap_path, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return refused(act, VN_CALL_OPEN);
	nic->tap_fds[nic->n_tap++] = fd;
	name_request(&request, nic);
	request.ifr_flags = (short)(nic->tun_flags | (nic->n_tap == 1 ? IFF_TUN_EXCL : 0));
	if (ioctl_retry(fd, TUNSETIFF, &request) < 0)
		return refused(act, VN_CALL_TUNSETIFF);
	return 0;
}

/* The ifindex, and proof that it is our device's: names can be changed by others, ifindexes cannot. */
static int identify(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	struct ifreq request;

	name_request(&request, nic);
	if (ioctl_retry(run->nl.fd, SIOCGIFINDEX, &request) < 0)
		return refused(act, VN_CALL_SIOCGIFINDEX);
	nic->ifindex = request.ifr_ifindex;
	memset(&request, 0, sizeof(request));
	if (ioctl_retry(nic->tap_fds[0], TUNGETIFF, &request) < 0)
		return refused(act, VN_CALL_TUNGETIFF);
	if (strncmp(request.ifr_name, nic->name, VN_IFNAMSIZ) != 0) {
		errno = ESTALE;
		return refused(act, VN_CALL_TUNGETIFF);
	}
	return 0;
}

static int tap_open(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	for (uint32_t queue = 0; queue < nic->queues; queue++) {
		int rc = open_queue(nic, act);

		if (rc < 0) {
			act->queue = (int32_t)queue;
			return rc;
		}
	}
	return identify(run, nic, act);
}

/* ---- VHOST_OPEN ---------------------------------------------------------------------------------------- */

/* O_NONBLOCK | O_NOCTTY: the path is the user's and may be a tty or a FIFO; QEMU sets O_NONBLOCK anyway. */
static int open_vhost(const char *path, struct vn_act *act)
{
	int fd = open_retry(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

	return fd < 0 ? refused(act, VN_CALL_OPEN) : fd;
}

/* Proof that it is vhost-net, without ever owning it: a second VHOST_SET_OWNER, QEMU's, would be EBUSY. */
static int prove_vhost(int fd, struct vn_act *act)
{
	uint64_t features = 0;
	struct stat status;

	if (fstat(fd, &status) < 0)
		return refused(act, VN_CALL_FSTAT);
	errno = ENOTTY;
	if (!S_ISCHR(status.st_mode) || ioctl_retry(fd, VHOST_GET_FEATURES, &features) < 0)
		return refused(act, VN_CALL_VHOST_GET_FEATURES);
	errno = EPROTONOSUPPORT;
	if ((features & VHOST_NEEDED) != VHOST_NEEDED)
		return refused(act, VN_CALL_VHOST_GET_FEATURES);
	return 0;
}

static int vhost_open(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	int rc = 0;

	(void)run;
	for (uint32_t queue = 0; queue < nic->queues && rc >= 0; queue++) {
		act->queue = (int32_t)queue;
		rc = open_vhost(nic->vhost_path, act);
		if (rc < 0)
			break;
		nic->vhost_fds[nic->n_vhost++] = rc;
		rc = prove_vhost(rc, act);
	}
	if (rc < 0) {
		close_vhost(nic); /* all or none: QEMU refuses fewer vhost fds than TAP fds */
		return rc;
	}
	act->queue = -1;
	return 0;
}

/* ---- SELFTEST ------------------------------------------------------------------------------------------ */

static int vhost_call(int fd, unsigned long request, void *argument, struct vn_act *act, uint32_t call)
{
	return ioctl_retry(fd, request, argument) < 0 ? refused(act, call) : 0;
}

static int set_memory(int fd, uint64_t base, struct vn_act *act)
{
	union {
		struct vhost_memory table;
		char space[sizeof(struct vhost_memory) + sizeof(struct vhost_memory_region)];
	} memory = { .table = { .nregions = 1 } };

	memory.table.regions[0].memory_size = 2 * RING_BYTES;
	memory.table.regions[0].userspace_addr = base;
	return vhost_call(fd, VHOST_SET_MEM_TABLE, &memory, act, VN_CALL_VHOST_SET_MEM_TABLE);
}

static int set_ring(int fd, unsigned int index, uint64_t base, struct vn_act *act)
{
	struct vhost_vring_state size = { .index = index, .num = RING_ENTRIES };
	struct vhost_vring_state start = { .index = index };
	struct vhost_vring_addr address = {
		.index = index,
		.desc_user_addr = base,
		.avail_user_addr = base + 4096,
		.used_user_addr = base + 8192,
	};
	int rc = vhost_call(fd, VHOST_SET_VRING_NUM, &size, act, VN_CALL_VHOST_SET_VRING);

	if (rc == 0)
		rc = vhost_call(fd, VHOST_SET_VRING_BASE, &start, act, VN_CALL_VHOST_SET_VRING);
	if (rc == 0)
		rc = vhost_call(fd, VHOST_SET_VRING_ADDR, &address, act, VN_CALL_VHOST_SET_VRING);
	return rc;
}

/* Bind the TAP to a ring and let it go again. A TAP answers 0, anything else ENOTSOCK. */
static int bind_backend(int fd, unsigned int index, int tap, struct vn_act *act)
{
	struct vhost_vring_file backend = { .index = index, .fd = tap };
	int rc = vhost_call(fd, VHOST_NET_SET_BACKEND, &backend, act, VN_CALL_VHOST_NET_SET_BACKEND);

	backend.fd = -1;
	if (rc == 0)
		rc = vhost_call(fd, VHOST_NET_SET_BACKEND, &backend, act, VN_CALL_VHOST_NET_SET_BACKEND);
	return rc;
}

static int wire_up(int fd, char *memory, int tap, struct vn_act *act)
{
	uint64_t features = VHOST_NEEDED, base = (uint64_t)(uintptr_t)memory;
	int rc = vhost_call(fd, VHOST_SET_OWNER, NULL, act, VN_CALL_VHOST_SET_OWNER);

	if (rc == 0)
		rc = vhost_call(fd, VHOST_SET_FEATURES, &features, act, VN_CALL_VHOST_SET_FEATURES);
	if (rc == 0)
		rc = set_memory(fd, base, act);
	for (unsigned int index = 0; index < 2 && rc == 0; index++)
		rc = set_ring(fd, index, base + index * RING_BYTES, act);
	for (unsigned int index = 0; index < 2 && rc == 0; index++)
		rc = bind_backend(fd, index, tap, act);
	return rc;
}

static int selftest(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	int rc, fd = open_vhost(nic->vhost_path, act);
	char *memory;

	(void)run;
	if (fd < 0)
		return fd;
	rc = prove_vhost(fd, act);
	memory = mmap(NULL, 2 * RING_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) {
		rc = refused(act, VN_CALL_MMAP);
	} else {
		if (rc == 0)
			rc = wire_up(fd, memory, nic->tap_fds[0], act);
	}
	close(fd); /* before its memory goes */
	if (memory != MAP_FAILED)
		munmap(memory, 2 * RING_BYTES);
	return rc;
}

/* ---- ATTACH -------------------------------------------------------------------------------------------- */

/* Queue 0 is attached always; QEMU leaves the others detached when it ends. */
static int attach(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	(void)run;
	for (uint32_t queue = 1; queue < nic->queues; queue++) {
		struct ifreq request = { 0 };

		act->queue = (int32_t)queue;
		if (ioctl_retry(nic->tap_fds[queue], TUNGETIFF, &request) < 0)
			return refused(act, VN_CALL_TUNGETIFF);
		if (!(request.ifr_flags & IFF_DETACH_QUEUE))
			continue;
		memset(&request, 0, sizeof(request));
		request.ifr_flags = IFF_ATTACH_QUEUE;
		if (ioctl_retry(nic->tap_fds[queue], TUNSETQUEUE, &request) < 0)
			return refused(act, VN_CALL_TUNSETQUEUE);
	}
	act->queue = -1;
	return 0;
}

/* ---- QDISC, LINK, UP: they only write their message; flush() sends ------------------------------------- */

static int put_qdisc(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	struct tcmsg body = { .tcm_family = AF_UNSPEC, .tcm_ifindex = nic->ifindex, .tcm_parent = TC_H_ROOT };
	struct nlmsghdr *message = nl_begin(&run->nl, RTM_NEWQDISC, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
					    run->next + 1, &body, sizeof(body));

	act->call = VN_CALL_RTM_NEWQDISC;
	nl_attr(message, TCA_KIND, "noqueue", sizeof("noqueue"));
	nl_end(&run->nl, message);
	return 0;
}

static void put_no_ipv6(struct nlmsghdr *message)
{
	uint8_t mode = IN6_ADDR_GEN_MODE_NONE;
	struct rtattr *families = nl_attr(message, IFLA_AF_SPEC, NULL, 0);
	struct rtattr *inet6 = nl_attr(message, AF_INET6, NULL, 0);

	nl_attr(message, IFLA_INET6_ADDR_GEN_MODE, &mode, sizeof(mode));
	message->nlmsg_len = NLMSG_ALIGN(message->nlmsg_len);
	nl_end_nest(message, inet6);
	nl_end_nest(message, families);
}

static int put_link(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	struct ifinfomsg body = { .ifi_family = AF_UNSPEC, .ifi_index = nic->ifindex };
	struct nlmsghdr *message = nl_begin(&run->nl, RTM_NEWLINK, NLM_F_ACK, run->next + 1, &body, sizeof(body));

	act->call = VN_CALL_RTM_NEWLINK;
	if (nic->set_mac)
		nl_attr(message, IFLA_ADDRESS, nic->mac, sizeof(nic->mac));
	if (nic->mtu)
		nl_attr(message, IFLA_MTU, &nic->mtu, sizeof(nic->mtu));
	if (nic->master)
		nl_attr(message, IFLA_MASTER, &nic->master, sizeof(nic->master));
	if (nic->no_ipv6 && nic->mtu >= IPV6_MIN_MTU) /* below it there is no IPv6 to set anything in */
		put_no_ipv6(message);
	nl_end(&run->nl, message);
	return 0;
}

static int put_up(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	struct ifinfomsg body = {
		.ifi_family = AF_UNSPEC,
		.ifi_index = nic->ifindex,
		.ifi_flags = IFF_UP,
		.ifi_change = IFF_UP,
	};
	struct nlmsghdr *message = nl_begin(&run->nl, RTM_NEWLINK, NLM_F_ACK, run->next + 1, &body, sizeof(body));

	act->call = VN_CALL_RTM_NEWLINK;
	nl_end(&run->nl, message);
	return 0;
}

/* ---- bridges ------------------------------------------------------------------------------------------- */

static int ask_by_name(struct run *run, const char *name, unsigned long request, struct ifreq *answer)
{
	memset(&answer->ifr_ifru, 0, sizeof(answer->ifr_ifru));
	memcpy(answer->ifr_name, name, VN_IFNAMSIZ);
	return ioctl_retry(run->nl.fd, request, answer) < 0 ? -errno : 0;
}

static int check_is_bridge(struct run *run, const char *name)
{
	struct ethtool_drvinfo info = { .cmd = ETHTOOL_GDRVINFO };
	struct ifreq request = { .ifr_data = (void *)&info };

	memcpy(request.ifr_name, name, VN_IFNAMSIZ);
	if (ioctl_retry(run->nl.fd, SIOCETHTOOL, &request) < 0)
		return -errno;
	return strcmp(info.driver, "bridge") == 0 ? 0 : -EOPNOTSUPP;
}

/*
 * The bridge of one NIC: its ifindex and MTU; an earlier row may have found it already. By three ioctls: asked by
 * RTM_GETLINK a bridge recites all of itself, which takes twice as long.
 */
static int find_bridge(struct run *run, uint32_t index)
{
	struct vn_nic *nic = &run->nics[index];
	struct ifreq answer;
	int rc;

	for (uint32_t i = index; i-- > 0;) {
		const struct vn_nic *other = &run->nics[i];

		if (other->bridge_mtu && memcmp(other->bridge, nic->bridge, VN_IFNAMSIZ) == 0) {
			nic->master = other->master;
			nic->bridge_mtu = other->bridge_mtu;
			return 0;
		}
	}
	rc = ask_by_name(run, nic->bridge, SIOCGIFINDEX, &answer);
	nic->master = rc == 0 ? (uint32_t)answer.ifr_ifindex : 0;
	if (rc == 0)
		rc = ask_by_name(run, nic->bridge, SIOCGIFMTU, &answer);
	nic->bridge_mtu = rc == 0 ? (uint32_t)answer.ifr_mtu : 0;
	return rc == 0 ? check_is_bridge(run, nic->bridge) : rc;
}

/* Every bridge that a row only names, before anything is made. *index is the row that failed. */
static int find_bridges(struct run *run, uint32_t n_nics, uint32_t *index)
{
	int rc = 0;

	for (uint32_t i = 0; i < n_nics && rc == 0; i++) {
		struct vn_nic *nic = &run->nics[i];

		*index = i;
		if (nic->bridge[0] && nic->master == 0)
			rc = find_bridge(run, i);
		if (nic->mtu == 0)
			nic->mtu = nic->bridge_mtu;
	}
	return rc;
}

/* ---- the loop ------------------------------------------------------------------------------------------ */

static const struct {
	int (*act)(struct run *run, struct vn_nic *nic, struct vn_act *act);
	bool queued; /* it wrote a message and is not done before the next flush() */
} ACTS[VN_ACTS] = {
	[VN_TAP_OPEN] = { tap_open, false }, [VN_VHOST_OPEN] = { vhost_open, false },
	[VN_SELFTEST] = { selftest, false }, [VN_QDISC] = { put_qdisc, true },
	[VN_LINK] = { put_link, true },	     [VN_UP] = { put_up, true },
	[VN_ATTACH] = { attach, false },
};

enum { UNANSWERED = 1 }; /* vn_act.error of an act whose message has no answer yet */

static int take_answer(void *context, const struct nlmsghdr *message)
{
	const struct nlmsgerr *answer = NLMSG_DATA(message);
	struct run *run = context;
	uint32_t index = message->nlmsg_seq - 1;

	if (message->nlmsg_type != NLMSG_ERROR || index < run->first || index >= run->next ||
	    run->acts[index].error != UNANSWERED)
		return 0;
	if (message->nlmsg_len < NLMSG_LENGTH(sizeof(*answer)) || answer->error > 0)
		return -EBADMSG;
	run->acts[index].error = answer->error;
	return 1;
}

/* Send what the acts since the last flush() wrote, and give each its answer and its share of the time. */
static int flush(struct run *run)
{
	uint32_t count = run->next - run->first, call = VN_CALL_NONE;
	uint64_t started = now(), each;
	int lost, rc = 0;

	if (count == 0)
		return 0;
	lost = nl_exchange(&run->nl, take_answer, run, &call);
	each = (now() - started) / count;
	for (; run->first < run->next; run->first++) {
		struct vn_act *act = &run->acts[run->first];

		act->ns += each;
		if (act->error == UNANSWERED) {
			act->error = lost;
			act->call = call;
		}
		if (rc == 0)
			rc = act->error;
	}
	return rc;
}

static int step(struct run *run, uint32_t index)
{
	struct vn_act *act = &run->acts[index];
	bool queued = ACTS[act->op].queued;
	uint64_t started;
	int rc = 0;

	if (!queued || (act->flags & VN_BARRIER) || run->next - run->first == NL_BATCH)
		rc = flush(run);
	if (rc < 0)
		return rc;
	started = now();
	if (run->first == run->next)
		run->first = run->next = index;
	rc = ACTS[act->op].act(run, &run->nics[act->nic], act);
	act->ns = now() - started;
	act->error = queued ? UNANSWERED : rc;
	run->next = queued ? index + 1 : index;
	return (act->flags & VN_OPTIONAL) && !queued ? 0 : rc;
}

static bool sound_nic(const struct vn_nic *nic)
{
	return terminated(nic->name) && terminated(nic->bridge) && nic->queues >= 1 && nic->queues <= VN_MAX_QUEUES &&
	       nic->tap_fds && nic->vhost_fds && nic->tap_path && nic->vhost_path;
}

/* Refuse a Program that would lead us outside its arrays, before the first syscall. */
static int check(struct vn_nic *nics, uint32_t n_nics, struct vn_act *acts, uint32_t n_acts)
{
	if (n_nics == 0 || !nics || n_acts == 0 || !acts)
		return -EINVAL;
	for (uint32_t i = 0; i < n_nics; i++)
		if (!sound_nic(&nics[i]))
			return -EINVAL;
	for (uint32_t i = 0; i < n_acts; i++)
		if (acts[i].op >= VN_ACTS || acts[i].nic >= n_nics)
			return -EINVAL;
	return 0;
}

static void clear_results(struct vn_nic *nics, uint32_t n_nics, struct vn_act *acts, uint32_t n_acts)
{
	for (uint32_t i = 0; i < n_nics; i++) {
		nics[i].n_tap = nics[i].n_vhost = 0;
		nics[i].ifindex = 0;
		nics[i].bridge_mtu = 0;
	}
	for (uint32_t i = 0; i < n_acts; i++) {
		acts[i].error = 0;
		acts[i].call = VN_CALL_NONE;
		acts[i].queue = -1;
		acts[i].ns = 0;
	}
}

/* A bridge that was not found is the LINK act's to report. */
static int blame(struct vn_act *acts, uint32_t n_acts, uint32_t op, uint32_t nic, int rc, uint32_t call)
{
	struct vn_act *act = acts;

	for (uint32_t i = 0; i < n_acts; i++) {
		if (acts[i].op == op && acts[i].nic == nic) {
			act = &acts[i];
			break;
		}
	}
	act->error = rc;
	act->call = call;
	return rc;
}

static int run_acts(struct run *run, uint32_t n_acts)
{
	int rc = 0;

	for (uint32_t i = 0; i < n_acts && rc == 0; i++)
		rc = step(run, i);
	return rc == 0 ? flush(run) : rc;
}

int vn_run(struct vn_nic *nics, uint32_t n_nics, struct vn_act *acts, uint32_t n_acts)
{
	struct run run = { .nics = nics, .acts = acts };
	uint32_t index = 0;
	int rc = check(nics, n_nics, acts, n_acts);

	if (rc < 0)
		return rc;
	clear_results(nics, n_nics, acts, n_acts);
	rc = nl_open(&run.nl);
	if (rc < 0)
		return blame(acts, n_acts, acts[0].op, acts[0].nic, rc, VN_CALL_SOCKET);
	rc = find_bridges(&run, n_nics, &index);
	if (rc < 0)
		blame(acts, n_acts, VN_LINK, index, rc, VN_CALL_SIOCGIFINDEX);
	else
		rc = run_acts(&run, n_acts);
	for (uint32_t i = n_nics; i-- > 0 && rc < 0;) {
		close_vhost(&nics[i]);
		close_taps(&nics[i]);
	}
	close(run.nl.fd);
	return rc;
}

/* ---- questions ------------------------------------------------------------------------------------------ */

struct lookup {
	struct vn_link *links;
	uint32_t first;
	uint32_t next;
};

/* The attribute at *data, stepping over it; NULL at the end or where the rest is malformed. */
static const struct rtattr *next_attr(const char **data, size_t *left)
{
	const struct rtattr *attribute = (const struct rtattr *)*data;
	size_t size;

	if (*left < sizeof(*attribute) || attribute->rta_len < sizeof(*attribute) || attribute->rta_len > *left)
		return NULL;
	size = RTA_ALIGN((size_t)attribute->rta_len);
	size = size < *left ? size : *left;
	*data += size;
	*left -= size;
	return attribute;
}

static void read_kind(struct vn_link *link, const struct rtattr *info)
{
	const char *data = RTA_DATA(info);
	size_t left = RTA_PAYLOAD(info);
	const struct rtattr *a;

	while ((a = next_attr(&data, &left)))
		if (a->rta_type == IFLA_INFO_KIND && RTA_PAYLOAD(a) < sizeof(link->kind))
			memcpy(link->kind, RTA_DATA(a), RTA_PAYLOAD(a));
}

static void read_attribute(struct vn_link *link, const struct rtattr *attribute)
{
	size_t size = RTA_PAYLOAD(attribute);

	if (attribute->rta_type == IFLA_MTU && size == sizeof(link->mtu))
		memcpy(&link->mtu, RTA_DATA(attribute), size);
	if (attribute->rta_type == IFLA_ADDRESS && size <= sizeof(link->mac)) {
		memcpy(link->mac, RTA_DATA(attribute), size);
		link->mac_len = (uint32_t)size;
	}
	if (attribute->rta_type == IFLA_LINKINFO)
		read_kind(link, attribute);
}

static int read_link(struct vn_link *link, const struct nlmsghdr *message)
{
	const struct ifinfomsg *body = NLMSG_DATA(message);
	const char *data = (const char *)body + NLMSG_ALIGN(sizeof(*body));
	const struct rtattr *a;
	size_t left;

	if (message->nlmsg_len < NLMSG_SPACE(sizeof(*body)))
		return -EBADMSG;
	left = message->nlmsg_len - NLMSG_SPACE(sizeof(*body));
	link->ifindex = body->ifi_index;
	while ((a = next_attr(&data, &left)))
		read_attribute(link, a);
	return 1;
}

static int take_link(void *context, const struct nlmsghdr *message)
{
	const struct nlmsgerr *refusal = NLMSG_DATA(message);
	struct lookup *lookup = context;
	uint32_t index = message->nlmsg_seq - 1;

	if (index < lookup->first || index >= lookup->next)
		return 0;
	if (message->nlmsg_type == RTM_NEWLINK)
		return read_link(&lookup->links[index], message);
	if (message->nlmsg_type != NLMSG_ERROR)
		return 0;
	if (message->nlmsg_len < NLMSG_LENGTH(sizeof(*refusal)) || refusal->error >= 0)
		return -EBADMSG;
	return refusal->error == -ENODEV ? 1 : refusal->error;
}

static void put_lookup(struct netlink *nl, const struct vn_link *link, uint32_t seq)
{
	struct ifinfomsg body = { .ifi_family = AF_UNSPEC };
	struct nlmsghdr *message = nl_begin(nl, RTM_GETLINK, 0, seq, &body, sizeof(body));
	uint32_t mask = RTEXT_FILTER_SKIP_STATS;

	nl_attr(message, IFLA_IFNAME, link->name, strlen(link->name) + 1);
	nl_attr(message, IFLA_EXT_MASK, &mask, sizeof(mask));
	nl_end(nl, message);
}

int vn_describe(struct vn_link *links, uint32_t n_links)
{
	struct lookup lookup = { .links = links };
	struct netlink nl = { 0 };
	uint32_t call;
	int rc;

	for (uint32_t i = 0; i < n_links; i++) {
		if (!terminated(links[i].name))
			return -EINVAL;
		memset((char *)&links[i] + VN_IFNAMSIZ, 0, sizeof(links[i]) - VN_IFNAMSIZ);
	}
	rc = nl_open(&nl);
	if (rc < 0)
		return rc;
	while (rc == 0 && lookup.first < n_links) {
		for (; lookup.next < n_links && lookup.next - lookup.first < NL_LOOKUPS; lookup.next++)
			put_lookup(&nl, &links[lookup.next], lookup.next + 1);
		rc = nl_exchange(&nl, take_link, &lookup, &call);
		lookup.first = lookup.next;
	}
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
