/*
 * The C core: executes a Program (vn_run), and the two questions a Program is planned from (vn_describe,
 * vn_features). It knows no Python, holds no state, and leaves policy and order to whoever made the
 * Program.
 *
 * Ownership: fds that a run opened are in its vn_nic rows from the moment they exist, counted by n_tap and
 * n_vhost. What was made of a NIC that failed is deleted; the others are left to the caller.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <linux/ethtool.h>
#include <linux/if.h>
#include <linux/if_arp.h>
#include <linux/if_bridge.h>
#include <linux/if_ether.h>
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
	NL_BATCH = 64,	    /* messages of one send: what it holds RTNL for stays short */
	NL_LOOKUPS = 16,    /* each answer to RTM_GETLINK takes kilobytes of the receive buffer */
	NL_MESSAGE = 256,   /* more than any message below */
	NL_ANSWER = 32768,  /* what the kernel puts into one datagram of a listing, at the most */
	DELETE_BATCH = 128, /* links of one group: RTNL is held until the last one is gone */
	IDENTIFY_TRIES = 3,
	MAC_TRIES = 3,
	LIST_TRIES = 8,		     /* a listing is of no use when links come and go meanwhile */
	CLOSERS = 64,		     /* threads that wait for grace periods, side by side */
	BR_PORTS = VN_MAX_PORTS + 1, /* numbers a port can have; the first is never given */
	IPV6_MIN_MTU = 1280,
	RING_ENTRIES = 256,
	RING_BYTES = 16384, /* descriptors 4096, available 518, used 2054 */
};

#define VHOST_NEEDED ((1ULL << VIRTIO_NET_F_MRG_RXBUF) | (1ULL << VIRTIO_F_VERSION_1))

struct netlink {
	int fd;
	uint32_t port;
	uint32_t first;	  /* sequence number of the first message in out */
	uint32_t queued;  /* messages in out */
	uint32_t pending; /* requests without an answer */
	size_t length;
	uint32_t tags[NL_BATCH]; /* what each message is about */
	char out[NL_BATCH * NL_MESSAGE];
};

struct run {
	struct vn_nic *nics;
	struct vn_act *acts;
	struct vn_bridge *bridges;
	bool keep;
	uint32_t first; /* acts[first..next) wait for the next flush */
	uint32_t next;
	struct netlink nl;
};

/* An answer to the message of that tag. 1: the last one, 0: there is more to come, -errno: it is malformed. */
typedef int answer_fn(void *context, uint32_t tag, const struct nlmsghdr *message);

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

static int fstat_retry(int fd, struct stat *status)
{
	int rc, tries = EINTR_TRIES;

	do
		rc = fstat(fd, status);
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

/* ---- netlink ------------------------------------------------------------------------------------------ */

static int nl_open(struct netlink *nl)
{
	struct sockaddr_nl address = { .nl_family = AF_NETLINK };
	socklen_t size = sizeof(address);

	nl->first = nl->queued = nl->pending = 0;
	nl->length = 0;
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

/* A message of this size of body, which nl_end() queues; its answers come with this tag. */
static struct nlmsghdr *nl_begin(struct netlink *nl, uint16_t type, uint16_t flags, uint32_t tag, const void *body,
				 size_t size)
{
	struct nlmsghdr *message = (struct nlmsghdr *)(nl->out + nl->length);

	memset(message, 0, NL_MESSAGE);
	message->nlmsg_len = (uint32_t)NLMSG_LENGTH(size);
	message->nlmsg_type = type;
	message->nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags);
	message->nlmsg_seq = nl->first + nl->queued;
	nl->tags[nl->queued] = tag;
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
	nl->queued++;
}

/* Go through one datagram; answers to somebody else and stray messages are passed over. */
static int nl_parse(struct netlink *nl, const char *data, size_t length, answer_fn *answer, void *context)
{
	while (length >= sizeof(struct nlmsghdr)) {
		const struct nlmsghdr *message = (const struct nlmsghdr *)data;
		size_t size = NLMSG_ALIGN((size_t)message->nlmsg_len);
		uint32_t number = message->nlmsg_seq - nl->first;
		int rc = 0;

		if (message->nlmsg_len < sizeof(*message) || message->nlmsg_len > length)
			return -EBADMSG;
		if (message->nlmsg_pid == nl->port && number < nl->queued)
			rc = answer(context, nl->tags[number], message);
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
	if (nl->queued == 0)
		return 0; /* every NIC of these acts has failed; the kernel warns of empty messages */
	do
		sent = sendto(nl->fd, nl->out, length, 0, (struct sockaddr *)&kernel, sizeof(kernel));
	while (sent < 0 && errno == EINTR && tries-- > 0);
	if (sent != (ssize_t)length)
		rc = sent < 0 ? -errno : -EMSGSIZE;
	else
		*call = VN_CALL_RECV;
	for (nl->pending = nl->queued; rc == 0 && nl->pending > 0;)
		rc = nl_receive(nl, answer, context);
	nl->first += nl->queued; /* so that a late answer to these is nobody's */
	nl->queued = 0;
	nl->length = 0;
	return rc;
}

/* The errno of an NLMSG_ERROR into *error; 0 there is an acknowledgement. */
static int nl_error(const struct nlmsghdr *message, int *error)
{
	const struct nlmsgerr *answer = NLMSG_DATA(message);

	if (message->nlmsg_len < NLMSG_LENGTH(sizeof(*answer)) || answer->error > 0)
		return -EBADMSG;
	*error = answer->error;
	return 1;
}

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

/* The attributes of a link: where they begin, and how many bytes they have; NULL where the message is too short. */
static const char *link_attrs(const struct nlmsghdr *message, size_t *left)
{
	if (message->nlmsg_len < NLMSG_SPACE(sizeof(struct ifinfomsg)))
		return NULL;
	*left = message->nlmsg_len - NLMSG_SPACE(sizeof(struct ifinfomsg));
	return (const char *)message + NLMSG_SPACE(sizeof(struct ifinfomsg));
}

/* ---- a link by its name ------------------------------------------------------------------------------- */

/* Each attribute of a TUN or TAP device is one octet. */
static void read_tun(struct vn_link *link, const struct rtattr *info)
{
	const char *data = RTA_DATA(info);
	size_t left = RTA_PAYLOAD(info);
	const struct rtattr *a;

	while ((a = next_attr(&data, &left))) {
		uint8_t value = RTA_PAYLOAD(a) == 1 ? *(const uint8_t *)RTA_DATA(a) : 0;

		if (a->rta_type == IFLA_TUN_TYPE)
			link->tun_flags |= value;
		if (a->rta_type == IFLA_TUN_PI && !value)
			link->tun_flags |= IFF_NO_PI;
		if (a->rta_type == IFLA_TUN_PERSIST && value)
			link->tun_flags |= IFF_PERSIST;
		if (a->rta_type == IFLA_TUN_VNET_HDR && value)
			link->tun_flags |= IFF_VNET_HDR;
		if (a->rta_type == IFLA_TUN_MULTI_QUEUE && value)
			link->tun_flags |= IFF_MULTI_QUEUE;
	}
}

static void read_info(struct vn_link *link, const struct rtattr *info)
{
	const char *data = RTA_DATA(info);
	size_t left = RTA_PAYLOAD(info);
	const struct rtattr *a;

	while ((a = next_attr(&data, &left))) {
		if (a->rta_type == IFLA_INFO_KIND && RTA_PAYLOAD(a) < sizeof(link->kind))
			memcpy(link->kind, RTA_DATA(a), RTA_PAYLOAD(a));
		if (a->rta_type == IFLA_INFO_DATA && strcmp(link->kind, "tun") == 0) /* the kind comes first */
			read_tun(link, a);
	}
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
		read_info(link, attribute);
}

static int read_link(struct vn_link *link, const struct nlmsghdr *message)
{
	const struct ifinfomsg *body = NLMSG_DATA(message);
	const struct rtattr *a;
	size_t left;
	const char *data = link_attrs(message, &left);

	if (!data)
		return -EBADMSG;
	link->ifindex = body->ifi_index;
	while ((a = next_attr(&data, &left)))
		read_attribute(link, a);
	return 1;
}

static int take_link(void *context, uint32_t tag, const struct nlmsghdr *message)
{
	struct vn_link *links = context;
	int error = 0, rc = 0;

	if (message->nlmsg_type == RTM_NEWLINK)
		return read_link(&links[tag], message);
	if (message->nlmsg_type == NLMSG_ERROR)
		rc = nl_error(message, &error);
	return rc < 0 || error == 0 || error == -ENODEV ? rc : error;
}

static void put_lookup(struct netlink *nl, const struct vn_link *link, uint32_t tag)
{
	struct ifinfomsg body = { .ifi_family = AF_UNSPEC };
	struct nlmsghdr *message = nl_begin(nl, RTM_GETLINK, 0, tag, &body, sizeof(body));
	uint32_t mask = RTEXT_FILTER_SKIP_STATS;

	nl_attr(message, IFLA_IFNAME, link->name, strlen(link->name) + 1);
	nl_attr(message, IFLA_EXT_MASK, &mask, sizeof(mask));
	nl_end(nl, message);
}

/* ---- one kernel act each: TAP_OPEN --------------------------------------------------------------------- */

static void name_request(struct ifreq *request, const struct vn_nic *nic)
{
	memset(request, 0, sizeof(*request));
	memcpy(request->ifr_name, nic->name, VN_IFNAMSIZ);
}

/* By the fd: no name that could be another link's by now, and no need to be in its network namespace. */
static int get_mac(int tap, uint8_t *mac)
{
	struct ifreq request = { 0 };

	if (ioctl_retry(tap, SIOCGIFHWADDR, &request) < 0)
		return -errno;
	memcpy(mac, request.ifr_hwaddr.sa_data, ETH_ALEN);
	return 0;
}

static int set_mac(int tap, const uint8_t *mac)
{
	struct ifreq request = { .ifr_hwaddr.sa_family = ARPHRD_ETHER };

	memcpy(request.ifr_hwaddr.sa_data, mac, ETH_ALEN);
	return ioctl_retry(tap, SIOCSIFHWADDR, &request) < 0 ? -errno : 0;
}

/*
 * A MAC that no other link has, by which this device can be told from all of them. It is set at once, before udev looks
 * whether the MAC is still the kernel's own random one and gives it another.
 */
static int set_unique_mac(int tap, struct vn_act *act)
{
	uint8_t mac[ETH_ALEN];
	int rc;

	if (getrandom(mac, sizeof(mac), 0) != sizeof(mac))
		return refused(act, VN_CALL_GETRANDOM);
	mac[0] = 0xfe;
	rc = set_mac(tap, mac);
	act->call = VN_CALL_SIOCSIFHWADDR;
	return rc;
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
	return nic->n_tap == 1 && nic->set_mac ? set_unique_mac(fd, act) : 0;
}

/* The MAC of the device that every queue is one of. ESTALE where there are two: a name was changed in between. */
static int common_mac(const struct vn_nic *nic, uint8_t *mac)
{
	uint8_t other[ETH_ALEN];
	int rc = get_mac(nic->tap_fds[0], mac);

	for (uint32_t queue = 1; queue < nic->n_tap && rc == 0; queue++) {
		rc = get_mac(nic->tap_fds[queue], other);
		if (rc == 0 && memcmp(mac, other, ETH_ALEN) != 0)
			rc = -ESTALE;
	}
	return rc;
}

static int identify_once(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	struct vn_link link = { 0 };
	uint8_t mac[ETH_ALEN];
	int rc = common_mac(nic, mac);

	act->call = VN_CALL_SIOCGIFHWADDR;
	if (rc < 0)
		return rc;
	memcpy(link.name, nic->name, VN_IFNAMSIZ);
	put_lookup(&run->nl, &link, 0);
	rc = nl_exchange(&run->nl, take_link, &link, &act->call);
	if (rc < 0)
		return rc;
	act->call = VN_CALL_RTM_GETLINK;
	if (link.mac_len != ETH_ALEN || memcmp(link.mac, mac, ETH_ALEN) != 0)
		return -ESTALE;
	nic->ifindex = link.ifindex;
	return 0;
}

/*
 * The ifindex, and proof that it is our device's, and that every queue is. Names can be changed by others between any
 * two calls; what no rename changes is the MAC, and no other link has this one. A fd tells that of its device, and one
 * answer of rtnetlink has ifindex and MAC together. udev may set another in between, once.
 */
static int identify(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	int rc, tries = IDENTIFY_TRIES;

	do
		rc = identify_once(run, nic, act);
	while (rc == -ESTALE && --tries > 0);
	return rc;
}

static int tap_open(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	int rc;

	for (uint32_t queue = 0; queue < nic->queues; queue++) {
		rc = open_queue(nic, act);
		if (rc < 0) {
			act->queue = (int32_t)queue;
			return rc;
		}
	}
	rc = identify(run, nic, act);
	if (rc < 0 || !nic->set_mac)
		return rc;
	act->call = VN_CALL_SIOCSIFHWADDR;
	return set_mac(nic->tap_fds[0], nic->mac); /* the one it is to have: soon, since udev's rules may look at it */
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

	if (fstat_retry(fd, &status) < 0)
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
	char *memory = MAP_FAILED;

	(void)run;
	if (fd < 0)
		return fd;
	rc = prove_vhost(fd, act);
	if (rc == 0)
		memory = mmap(NULL, 2 * RING_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (rc == 0)
		rc = memory == MAP_FAILED ? refused(act, VN_CALL_MMAP) : wire_up(fd, memory, nic->tap_fds[0], act);
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
	for (uint32_t queue = 1; queue < nic->n_tap; queue++) {
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

/* ---- the acts on rtnetlink: they only write their message; flush() sends ------------------------------- */

static uint32_t number(const struct run *run, const struct vn_act *act)
{
	return (uint32_t)(act - run->acts);
}

static struct nlmsghdr *begin_link(struct run *run, const struct vn_nic *nic, const struct vn_act *act)
{
	struct ifinfomsg body = { .ifi_family = AF_UNSPEC, .ifi_index = nic->ifindex };

	return nl_begin(&run->nl, RTM_NEWLINK, NLM_F_ACK, number(run, act), &body, sizeof(body));
}

static int put_qdisc(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	struct tcmsg body = { .tcm_family = AF_UNSPEC, .tcm_ifindex = nic->ifindex, .tcm_parent = TC_H_ROOT };
	struct nlmsghdr *message = nl_begin(&run->nl, RTM_NEWQDISC, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
					    number(run, act), &body, sizeof(body));

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

static void put_flag_up(struct nlmsghdr *message)
{
	struct ifinfomsg *body = NLMSG_DATA(message);

	body->ifi_flags = body->ifi_change = IFF_UP;
}

static int put_link(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	struct nlmsghdr *message = begin_link(run, nic, act);

	act->call = VN_CALL_RTM_NEWLINK;
	if (nic->up)
		put_flag_up(message);
	if (nic->set_mac)
		nl_attr(message, IFLA_ADDRESS, nic->mac, sizeof(nic->mac));
	if (nic->mtu)
		nl_attr(message, IFLA_MTU, &nic->mtu, sizeof(nic->mtu));
	if (nic->alias[0])
		nl_attr(message, IFLA_IFALIAS, nic->alias, strlen(nic->alias));
	if (nic->bridge >= 0)
		nl_attr(message, IFLA_MASTER, &run->bridges[nic->bridge].ifindex, sizeof(uint32_t));
	if (nic->no_ipv6 && nic->mtu >= IPV6_MIN_MTU) /* below it there is no IPv6 to set anything in */
		put_no_ipv6(message);
	nl_end(&run->nl, message);
	return 0;
}

static int put_up(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	struct nlmsghdr *message = begin_link(run, nic, act);

	act->call = VN_CALL_RTM_NEWLINK;
	put_flag_up(message);
	nl_end(&run->nl, message);
	return 0;
}

static int put_rename(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	struct nlmsghdr *message = begin_link(run, nic, act);

	act->call = VN_CALL_RTM_NEWLINK;
	nl_attr(message, IFLA_IFNAME, nic->wish, strlen(nic->wish) + 1);
	nl_end(&run->nl, message);
	return 0;
}

static int put_altname(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	struct nlmsghdr *message = begin_link(run, nic, act);
	struct rtattr *names;

	act->call = VN_CALL_RTM_NEWLINKPROP;
	message->nlmsg_type = RTM_NEWLINKPROP;
	message->nlmsg_flags |= NLM_F_CREATE | NLM_F_EXCL | NLM_F_APPEND;
	names = nl_attr(message, NLA_F_NESTED | IFLA_PROP_LIST, NULL, 0);
	nl_attr(message, IFLA_ALT_IFNAME, nic->wish, strlen(nic->wish) + 1);
	nl_end_nest(message, names);
	nl_end(&run->nl, message);
	return 0;
}

/* ---- bridges ------------------------------------------------------------------------------------------- */

static int ask_by_name(int fd, const char *name, unsigned long request, struct ifreq *answer)
{
	memset(&answer->ifr_ifru, 0, sizeof(answer->ifr_ifru));
	memcpy(answer->ifr_name, name, VN_IFNAMSIZ);
	return ioctl_retry(fd, request, answer) < 0 ? -errno : 0;
}

static int check_is_bridge(int fd, const char *name)
{
	struct ethtool_drvinfo info = { .cmd = ETHTOOL_GDRVINFO };
	struct ifreq request = { .ifr_data = (void *)&info };

	memcpy(request.ifr_name, name, VN_IFNAMSIZ);
	if (ioctl_retry(fd, SIOCETHTOOL, &request) < 0)
		return -errno;
	return strcmp(info.driver, "bridge") == 0 ? 0 : -EOPNOTSUPP;
}

/*
 * How many ports a bridge has, by brctl's own ioctl: nothing younger gives that in one call. Not to be asked of any
 * other link, to which it would mean something else. 0 where a kernel has it no more.
 */
static uint32_t count_ports(int fd, const char *name)
{
	int ports[BR_PORTS] = { 0 }; /* ifindexes, by port number */
	unsigned long arguments[4] = { BRCTL_GET_PORT_LIST, (unsigned long)(uintptr_t)ports, BR_PORTS, 0 };
	struct ifreq request = { .ifr_data = (void *)arguments };
	uint32_t count = 0;

	memcpy(request.ifr_name, name, VN_IFNAMSIZ);
	if (ioctl_retry(fd, SIOCDEVPRIVATE, &request) < 0)
		return 0;
	for (uint32_t port = 0; port < BR_PORTS; port++)
		count += ports[port] != 0;
	return count;
}

/*
 * By ioctls: asked by RTM_GETLINK a bridge recites all of itself, which takes twice as long. Where no NIC joins, all of
 * them held and its ports already, there is no need to know what it is and how full.
 */
static int look_up(int fd, struct vn_bridge *bridge, bool joins)
{
	struct ifreq answer;
	int rc = ask_by_name(fd, bridge->name, SIOCGIFINDEX, &answer);

	if (rc == 0)
		bridge->ifindex = (uint32_t)answer.ifr_ifindex;
	if (rc == 0)
		rc = ask_by_name(fd, bridge->name, SIOCGIFMTU, &answer);
	if (rc == 0)
		bridge->mtu = (uint32_t)answer.ifr_mtu;
	if (rc == 0 && joins)
		rc = check_is_bridge(fd, bridge->name);
	if (rc == 0 && joins)
		bridge->ports = count_ports(fd, bridge->name);
	return rc;
}

/* ---- deleting ------------------------------------------------------------------------------------------ */

/* One NIC that is to go. */
struct doomed {
	struct vn_nic *nic;
	uint32_t call;
	int error; /* why its link cannot be deleted */
	bool gone; /* it has no link any more */
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

/*
 * Close the fds of those without an error. Each of vhost-net's, and the last of a TAP that still has its link, waits
 * for a grace period of 20 ms; those who wait at the same time share one.
 */
static void close_fds(struct doomed *doomed, uint32_t n)
{
	struct closing work = { .lock = PTHREAD_MUTEX_INITIALIZER, .doomed = doomed, .n = n };
	pthread_t threads[CLOSERS];
	uint32_t slow = 0, started = 0;

	for (uint32_t i = 0; i < n; i++)
		if (doomed[i].error == 0)
			slow += doomed[i].nic->n_vhost + !doomed[i].gone;
	while (started + 1 < slow && started < CLOSERS &&
	       pthread_create(&threads[started], NULL, close_some, &work) == 0)
		started++;
	close_some(&work);
	while (started > 0)
		pthread_join(threads[--started], NULL);
}

static int netns_of(int fd, unsigned long request, struct stat *status)
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

/* Proof that the ifindex is our TAP's, in this namespace, by what holds it. *here is NULL for what was made just now.
 */
static int claim(struct netlink *nl, struct doomed *d, const struct stat *here)
{
	struct ifreq request = { 0 };
	int rc = 0;

	if (d->nic->ifindex == 0)
		return -ESTALE; /* it was not made to the end, and never proven: it can only be closed */
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

		if (d->nic->n_tap == 0)
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

	if (getrandom(&group, sizeof(group), GRND_NONBLOCK) != sizeof(group))
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

/*
 * Delete the links of at most DELETE_BATCH NICs. Those that have no error afterwards are gone; their fds are dead and
 * still open. Nothing else has been touched.
 */
static void delete_links(struct netlink *nl, struct doomed *doomed, uint32_t n, bool held)
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
}

/* ---- the loop ------------------------------------------------------------------------------------------ */

/* What there is of a row. Until the run begins, check() keeps it in vn_nic.failed, which nobody needs before. */
enum { THERE = 1, VHOST = 2, HELD = 4, GONE = 8 };

static const struct {
	int (*act)(struct run *run, struct vn_nic *nic, struct vn_act *act);
	uint32_t batch; /* so many are put together, and done by the next flush(); 0: at once */
	uint32_t needs; /* what there must be of its row, */
	uint32_t bars;	/* what there must not be, */
	uint32_t makes; /* and what there is afterwards */
} ACTS[VN_ACTS] = {
	[VN_TAP_OPEN] = { tap_open, 0, 0, THERE, THERE },
	[VN_VHOST_OPEN] = { vhost_open, 0, 0, VHOST | GONE, VHOST },
	[VN_SELFTEST] = { selftest, 0, THERE, HELD, 0 },
	[VN_QDISC] = { put_qdisc, NL_BATCH, THERE, GONE, 0 },
	[VN_LINK] = { put_link, NL_BATCH, THERE, GONE, 0 },
	[VN_UP] = { put_up, NL_BATCH, THERE, GONE, 0 },
	[VN_ATTACH] = { attach, 0, HELD, GONE, 0 },
	[VN_ALTNAME] = { put_altname, NL_BATCH, THERE, GONE, 0 },
	[VN_RENAME] = { put_rename, NL_BATCH, THERE, GONE, 0 },
	[VN_DELETE] = { NULL, DELETE_BATCH, HELD, GONE, GONE },
};

enum { UNANSWERED = 1 }; /* vn_act.error of an act that is not done yet */

static int take_answer(void *context, uint32_t tag, const struct nlmsghdr *message)
{
	struct run *run = context;

	if (message->nlmsg_type != NLMSG_ERROR || run->acts[tag].error != UNANSWERED)
		return 0;
	return nl_error(message, &run->acts[tag].error);
}

/* Send what the acts wrote, and give each its answer. */
static void send_acts(struct run *run)
{
	uint32_t call = VN_CALL_NONE;
	int lost = nl_exchange(&run->nl, take_answer, run, &call);

	for (uint32_t i = run->first; i < run->next; i++) {
		if (run->acts[i].error != UNANSWERED)
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

static bool goes_with(const struct run *run, const struct vn_act *act)
{
	uint32_t batch = ACTS[act->op].batch;

	return batch > 0 && !(act->flags & VN_BARRIER) && ACTS[run->acts[run->first].op].batch == batch &&
	       run->next - run->first < batch;
}

static int step(struct run *run, uint32_t index)
{
	struct vn_act *act = &run->acts[index];
	bool queued = ACTS[act->op].batch > 0;
	struct vn_nic *nic = &run->nics[act->nic];
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
	started = now();
	act->error = ACTS[act->op].act ? ACTS[act->op].act(run, nic, act) : 0;
	act->ns = now() - started;
	if (act->error < 0 && !(act->flags & VN_OPTIONAL))
		return refuse(run, act);
	if (queued)
		act->error = UNANSWERED;
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
	       nic->vhost_path && nic->bridge >= -1 && nic->bridge < (int64_t)n_bridges;
}

static bool sound_held(const struct vn_nic *nic)
{
	return nic->n_tap >= 1 && nic->n_tap <= nic->queues && nic->n_vhost <= nic->queues && nic->ifindex >= 0;
}

/* The kernel reads 16 bits, and must not take the device for a TUN; IFF_TUN_EXCL is ours to set. */
static bool sound_flags(uint32_t flags)
{
	return flags <= UINT16_MAX && (flags & IFF_TAP) && !(flags & IFF_TUN_EXCL);
}

/* One act after those before it. */
static bool sound_act(const struct vn_act *act, const struct vn_program *program)
{
	struct vn_nic *nic;

	if (act->op >= VN_ACTS || act->nic >= program->n_nics || act->flags & ~(uint32_t)(VN_OPTIONAL | VN_BARRIER))
		return false;
	nic = &program->nics[act->nic];
	if ((nic->failed & ACTS[act->op].needs) != ACTS[act->op].needs || nic->failed & ACTS[act->op].bars ||
	    (act->op != VN_VHOST_OPEN && act->flags & VN_OPTIONAL) ||
	    ((act->op == VN_ALTNAME || act->op == VN_RENAME) && !nic->wish[0]) ||
	    (act->op == VN_TAP_OPEN && !sound_flags(nic->tun_flags)))
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

		if (!sound_nic(nic, program->n_bridges) || (nic->held && !sound_held(nic)))
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

/* A bridge that will not do is the LINK act's to report. */
static int blame(struct run *run, const struct vn_program *program, uint32_t nic, int error, uint32_t call)
{
	struct vn_act *act = &run->acts[0];

	for (uint32_t i = 0; i < program->n_acts; i++) {
		if (run->acts[i].op == VN_LINK && run->acts[i].nic == nic) {
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
			rc = blame(run, program, i, bridge->error, VN_CALL_SIOCGIFINDEX);
		else if (!nic->held && ++bridge->ports > VN_MAX_PORTS)
			rc = blame(run, program, i, -EXFULL, VN_CALL_BRCTL_GET_PORT_LIST);
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

/* Delete what this run made of the NICs that failed: by the group, and by closing what the group could not have. */
static void unmake(struct run *run, struct vn_program *program)
{
	struct doomed doomed[DELETE_BATCH];
	uint32_t n = 0;

	for (uint32_t i = 0; i < program->n_nics; i++) {
		struct vn_nic *nic = &run->nics[i];

		if (nic->failed && !nic->held && nic->n_tap + nic->n_vhost > 0)
			doomed[n++] = (struct doomed){ .nic = nic };
		if (n == 0 || (n < DELETE_BATCH && i + 1 < program->n_nics))
			continue;
		delete_links(&run->nl, doomed, n, false);
		for (uint32_t d = 0; d < n; d++) {
			if (program->undo_error == 0 && doomed[d].error < 0 && doomed[d].nic->ifindex > 0) {
				program->undo_error = doomed[d].error;
				program->undo_call = doomed[d].call;
			}
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

		if (act->op == VN_TAP_OPEN || (act->op == VN_VHOST_OPEN && !(act->flags & VN_OPTIONAL)))
			needed += program->nics[act->nic].queues;
	}
	if (needed == 0 || run->keep || getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY ||
	    fits(needed, limit.rlim_cur))
		return 0;
	run->acts[0].error = -EMFILE;
	run->acts[0].call = VN_CALL_RLIMIT_NOFILE;
	return -EMFILE;
}

/* The MAC that LINK gave a new NIC, put right where another was set: udev does that, once, if it looked before us. */
static int keep_mac(const struct vn_nic *nic, struct vn_act *act)
{
	for (int tries = MAC_TRIES; tries > 0; tries--) {
		uint8_t mac[ETH_ALEN];
		int rc = get_mac(nic->tap_fds[0], mac);

		act->call = VN_CALL_SIOCGIFHWADDR;
		if (rc < 0 || memcmp(mac, nic->mac, ETH_ALEN) == 0)
			return rc;
		act->call = VN_CALL_SIOCSIFHWADDR;
		rc = set_mac(nic->tap_fds[0], nic->mac);
		if (rc < 0)
			return rc;
	}
	return 0; /* whoever wants it so much */
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

static int run_acts(struct run *run, struct vn_program *program)
{
	int rc = check_files(run, program);

	if (rc == 0)
		rc = find_bridges(run, program);
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

/* ---- questions ------------------------------------------------------------------------------------------ */

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
