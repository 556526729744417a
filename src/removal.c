/* Taking NICs away: their links in one round, by the group, and their fds side by side. */

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/stat.h>

#include <linux/if.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <linux/random.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>

#include "calls.h"
#include "links.h"
#include "removal.h"

enum {
	LIST_TRIES = 8, /* a listing is of no use when links come and go meanwhile */
	CLOSERS = 64,	/* threads that wait for grace periods, side by side */
};

struct closing {
	pthread_mutex_t lock;
	struct doomed *doomed;
	uint32_t n;
	uint32_t at;
};

static int next_fd(struct closing *work)
{
	int fd = -1;

	pthread_mutex_lock(&work->lock);
	while (fd < 0 && work->at < work->n) {
		struct vn_nic *nic = work->doomed[work->at].nic;

		if (work->doomed[work->at].error < 0)
			work->at++;
		else if (nic->n_vhost > 0)
			fd = nic->vhost_fds[--nic->n_vhost];
		else if (nic->n_tap > 0)
			fd = nic->tap_fds[--nic->n_tap];
		else
			work->at++;
	}
	pthread_mutex_unlock(&work->lock);
	return fd;
}

static void *close_some(void *closing)
{
	int fd;

	while ((fd = next_fd(closing)) >= 0)
		close(fd);
	return NULL;
}

/* How many of them wait: the last one of a TAP that has its link, and every one of a macvtap, dead or alive. */
static uint32_t slow_taps(const struct doomed *d)
{
	return d->nic->macvtap ? d->nic->n_tap : !d->gone;
}

void close_fds(struct doomed *doomed, uint32_t n)
{
	struct closing work = { .lock = PTHREAD_MUTEX_INITIALIZER, .doomed = doomed, .n = n };
	pthread_t threads[CLOSERS];
	uint32_t slow = 0, started = 0;

	for (uint32_t i = 0; i < n; i++)
		if (doomed[i].error == 0)
			slow += doomed[i].nic->n_vhost + slow_taps(&doomed[i]);
	while (started + 1 < slow && started < CLOSERS &&
	       pthread_create(&threads[started], NULL, close_some, &work) == 0)
		started++;
	close_some(&work);
	while (started > 0)
		pthread_join(threads[--started], NULL);
}

int netns_of(int fd, unsigned long request, struct stat *status)
{
	int netns = ioctl_retry(fd, request, NULL), rc = 0;

	if (netns < 0)
		return -errno;
	if (fstat_retry(netns, status) < 0)
		rc = -errno;
	close(netns);
	return rc;
}

/* EXDEV when the TAP is in another network namespace, where its ifindex is another link's. */
static int in_netns(int tap, const struct stat *here)
{
	struct stat there;
	int rc = netns_of(tap, TUNGETDEVNETNS, &there);

	if (rc == 0 && (there.st_ino != here->st_ino || there.st_dev != here->st_dev))
		rc = -EXDEV;
	return rc;
}

/*
 * A macvtap is known by its mark: no fd tells the network namespace that it is in. One that was made just now may not
 * have it yet; its ifindex was chosen such that it is no other's.
 */
static int claim_macvtap(struct netlink *nl, struct doomed *d, bool held)
{
	const struct vn_nic *nic = d->nic;
	struct vn_link link = { .ifindex = nic->ifindex };
	uint8_t mac[6];
	int rc;

	put_lookup(nl, &link, 0);
	rc = nl_exchange(nl, take_link, &link, &d->call);
	if (rc < 0)
		return rc;
	d->call = VN_CALL_RTM_GETLINK;
	if (strcmp(link.kind, "macvtap") == 0 && (!held || strcmp(link.alias, nic->alias) == 0))
		return 0;
	d->gone = nic->n_tap == 0 || get_mac(nic->tap_fds[0], mac) == -ENOLINK;
	return d->gone ? 0 : -EXDEV;
}

int claim(struct netlink *nl, struct doomed *d, const struct stat *here)
{
	struct ifreq request = { 0 };
	int rc = 0;

	if (d->nic->ifindex == 0)
		return -ESTALE; /* it was not made to the end, and never proven: it can only be closed */
	if (d->nic->macvtap)
		return claim_macvtap(nl, d, here != NULL);
	d->call = VN_CALL_TUNGETIFF;
	if (ioctl_retry(d->nic->tap_fds[0], TUNGETIFF, &request) < 0) {
		d->gone = errno == EBADFD;
		return d->gone ? 0 : -errno;
	}
	d->call = VN_CALL_TUNGETDEVNETNS;
	if (here)
		rc = in_netns(d->nic->tap_fds[0], here);
	if (rc < 0)
		return rc;
	d->call = VN_CALL_SIOCGIFINDEX;
	if (ioctl_retry(nl->fd, SIOCGIFINDEX, &request) < 0)
		return -errno;
	return d->nic->ifindex == request.ifr_ifindex ? 0 : -ESTALE;
}

static void claim_all(struct netlink *nl, struct doomed *doomed, uint32_t n, bool held)
{
	struct stat here;
	int rc = held ? netns_of(nl->fd, SIOCGSKNS, &here) : 0;

	for (uint32_t i = 0; i < n; i++) {
		struct doomed *d = &doomed[i];

		if (d->nic->macvtap ? d->nic->ifindex == 0 : d->nic->n_tap == 0)
			d->gone = true;
		else
			d->error = rc < 0 ? rc : claim(nl, d, held ? &here : NULL);
	}
}

static void put_group(struct netlink *nl, uint16_t type, uint32_t tag, int ifindex, uint32_t group)
{
	struct ifinfomsg body = { .ifi_family = AF_UNSPEC, .ifi_index = ifindex };
	struct nlmsghdr *message = nl_begin(nl, type, NLM_F_ACK, tag, &body, sizeof(body));

	nl_attr(message, IFLA_GROUP, &group, sizeof(group));
	nl_end(nl, message);
}

static int take_group_answer(void *context, uint32_t tag, const struct nlmsghdr *message)
{
	struct doomed *doomed = context;

	return message->nlmsg_type == NLMSG_ERROR ? nl_error(message, &doomed[tag].error) : 0;
}

/* Put every link into the group; those that refuse have their error. */
static int set_group(struct netlink *nl, struct doomed *doomed, uint32_t n, uint32_t group, uint32_t *call)
{
	int rc = 0;

	for (uint32_t i = 0; i < n && rc == 0; i++) {
		if (doomed[i].error == 0 && !doomed[i].gone) {
			doomed[i].call = VN_CALL_RTM_NEWLINK;
			put_group(nl, RTM_NEWLINK, i, doomed[i].nic->ifindex, group);
		}
		if (nl->queued == NL_BATCH || (i + 1 == n && nl->queued > 0))
			rc = nl_exchange(nl, take_group_answer, doomed, call);
	}
	return rc;
}

struct listing {
	const struct doomed *doomed;
	uint32_t n;
	uint32_t group;
	uint32_t ours; /* links of that group that are to go */
	bool foreign;  /* and there is another */
	bool torn;     /* links came or went meanwhile */
};

static void take_member(struct listing *listing, int ifindex)
{
	for (uint32_t i = 0; i < listing->n; i++) {
		const struct doomed *d = &listing->doomed[i];

		if (d->error == 0 && !d->gone && d->nic->ifindex == ifindex) {
			listing->ours++;
			return;
		}
	}
	listing->foreign = true;
}

static int take_listed(void *context, uint32_t tag, const struct nlmsghdr *message)
{
	const struct ifinfomsg *body = NLMSG_DATA(message);
	struct listing *listing = context;
	const struct rtattr *a;
	size_t left;
	const char *data;
	int error = 0;

	(void)tag;
	listing->torn |= message->nlmsg_flags & NLM_F_DUMP_INTR;
	if (message->nlmsg_type == NLMSG_DONE)
		return 1;
	if (message->nlmsg_type == NLMSG_ERROR)
		return nl_error(message, &error) < 0 || error == 0 ? -EBADMSG : error;
	if (message->nlmsg_type != RTM_NEWLINK)
		return 0;
	data = link_attrs(message, &left);
	if (!data)
		return -EBADMSG;
	while ((a = next_attr(&data, &left)))
		if (a->rta_type == IFLA_GROUP && RTA_PAYLOAD(a) == sizeof(uint32_t) &&
		    memcmp(RTA_DATA(a), &listing->group, sizeof(uint32_t)) == 0)
			take_member(listing, body->ifi_index);
	return 0;
}

/* That the group holds what is to go, all of it and nothing else; whatever is in it dies. */
static int check_group(struct netlink *nl, const struct doomed *doomed, uint32_t n, uint32_t group, uint32_t *call)
{
	struct ifinfomsg body = { .ifi_family = AF_UNSPEC };
	uint32_t mask = RTEXT_FILTER_SKIP_STATS, wanted = 0;
	struct listing listing;
	int rc, tries = LIST_TRIES;

	for (uint32_t i = 0; i < n; i++)
		wanted += doomed[i].error == 0 && !doomed[i].gone;
	do {
		struct nlmsghdr *message = nl_begin(nl, RTM_GETLINK, NLM_F_DUMP, 0, &body, sizeof(body));

		nl_attr(message, IFLA_EXT_MASK, &mask, sizeof(mask));
		nl_end(nl, message);
		listing = (struct listing){ .doomed = doomed, .n = n, .group = group };
		rc = nl_exchange(nl, take_listed, &listing, call);
	} while (rc == 0 && listing.torn && --tries > 0);
	if (rc < 0)
		return rc;
	*call = VN_CALL_RTM_GETLINK;
	return listing.torn || listing.foreign || listing.ours != wanted ? -ESTALE : 0;
}

static int take_ack(void *context, uint32_t tag, const struct nlmsghdr *message)
{
	int *error = context;

	(void)tag;
	return message->nlmsg_type == NLMSG_ERROR ? nl_error(message, error) : 0;
}

/* One RCU round for all of them: links of one group are unregistered together. */
static int delete_group(struct netlink *nl, struct doomed *doomed, uint32_t n, uint32_t *call)
{
	uint32_t group = 0;
	int error = 0, rc;

	if (get_random(&group, sizeof(group), GRND_NONBLOCK) < 0)
		return -EAGAIN;
	group = (group & 0x3fffffff) | 0x40000000; /* 0 is where every link is at first */
	rc = set_group(nl, doomed, n, group, call);
	if (rc == 0)
		rc = check_group(nl, doomed, n, group, call);
	if (rc < 0)
		return rc;
	put_group(nl, RTM_DELLINK, 0, 0, group);
	rc = nl_exchange(nl, take_ack, &error, call);
	if (rc == 0)
		*call = VN_CALL_RTM_DELLINK;
	return rc < 0 ? rc : error;
}

/* What the group could not have, and closing does not take away: by itself, and once more from the beginning. */
static void delete_alone(struct netlink *nl, struct doomed *d, bool held)
{
	struct ifinfomsg body = { .ifi_family = AF_UNSPEC, .ifi_index = d->nic->ifindex };
	int error = 0;

	if (claim_macvtap(nl, d, held) < 0)
		return;
	if (!d->gone) {
		nl_end(nl, nl_begin(nl, RTM_DELLINK, NLM_F_ACK, 0, &body, sizeof(body)));
		if (nl_exchange(nl, take_ack, &error, &d->call) < 0 || error < 0)
			return;
	}
	d->error = 0;
	d->gone = true;
}

void delete_links(struct netlink *nl, struct doomed *doomed, uint32_t n, bool held)
{
	uint32_t call = VN_CALL_NONE, links = 0;
	int rc;

	claim_all(nl, doomed, n, held);
	for (uint32_t i = 0; i < n; i++)
		links += doomed[i].error == 0 && !doomed[i].gone;
	rc = links > 0 ? delete_group(nl, doomed, n, &call) : 0;
	for (uint32_t i = 0; i < n; i++) {
		if (doomed[i].error < 0 || doomed[i].gone)
			continue;
		doomed[i].error = rc;
		doomed[i].call = call;
		doomed[i].gone = rc == 0;
	}
	for (uint32_t i = 0; i < n; i++)
		if (doomed[i].nic->macvtap && doomed[i].error < 0)
			delete_alone(nl, &doomed[i], held);
}
