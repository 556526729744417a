/*
 * The floor: the system calls that the native engine makes, call for call (tests/engines/test_trace.py compares them),
 * and nothing around them: no errors but a count, no structure. What is slower than this is ours; what this takes is
 * the kernel's.
 *
 * Compiled on the spot and loaded by bench/run.py, so that it runs in the same process, namespace and heap as what
 * it is compared with.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <linux/ethtool.h>
#include <linux/if.h>
#include <linux/if_arp.h>
#include <linux/if_bridge.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/neighbour.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>

#define BATCH 64
#define BRIDGES 4
#define SIZE 192 /* of a message, at the most */
#define MARK "vhostnet:00000000-0000-4000-a000-000000000000:1000:100000"

struct queue {
	size_t length;
	uint32_t messages;
	char data[BATCH * SIZE];
};

static struct nlmsghdr *begin(struct queue *q, int type, int flags, const void *body, size_t size)
{
	struct nlmsghdr *m = (struct nlmsghdr *)(q->data + q->length);

	memset(m, 0, SIZE);
	m->nlmsg_len = (uint32_t)NLMSG_LENGTH(size);
	m->nlmsg_type = (uint16_t)type;
	m->nlmsg_flags = (uint16_t)(NLM_F_REQUEST | NLM_F_ACK | flags);
	memcpy(NLMSG_DATA(m), body, size);
	return m;
}

static void add(struct nlmsghdr *m, int type, const void *value, size_t size)
{
	struct rtattr *a = (struct rtattr *)((char *)m + NLMSG_ALIGN(m->nlmsg_len));

	a->rta_type = (uint16_t)type;
	a->rta_len = (uint16_t)RTA_LENGTH(size);
	memcpy(RTA_DATA(a), value, size);
	m->nlmsg_len = (uint32_t)(NLMSG_ALIGN(m->nlmsg_len) + RTA_LENGTH(size));
}

static ssize_t receive(int s, void *answer, size_t size)
{
	struct sockaddr_nl from;
	struct iovec iov = { .iov_base = answer, .iov_len = size };
	struct msghdr header = { .msg_name = &from, .msg_namelen = sizeof(from), .msg_iov = &iov, .msg_iovlen = 1 };

	return recvmsg(s, &header, MSG_DONTWAIT);
}

/* But for what is not there, where that is no harm. */
static int refused(const struct nlmsgerr *answer)
{
	return answer->error && !(answer->error == -ENOENT && answer->msg.nlmsg_type == RTM_NEWQDISC);
}

static int done(int s, struct queue *q)
{
	char answer[512];
	int failed = 0;

	if (q->messages == 0)
		return 0;
	if (send(s, q->data, q->length, 0) < 0)
		return -1;
	for (; q->messages > 0; q->messages--) {
		const struct nlmsghdr *m = (const struct nlmsghdr *)answer;

		if (receive(s, answer, sizeof(answer)) < 0 || refused(NLMSG_DATA(m)))
			failed = -1;
	}
	q->length = 0;
	return failed;
}

static int end(int s, struct queue *q, const struct nlmsghdr *m)
{
	q->length += NLMSG_ALIGN(m->nlmsg_len);
	return ++q->messages == BATCH ? done(s, q) : 0;
}

/* Room for so many messages that belong together. */
static int room_in(int s, struct queue *q, uint32_t messages)
{
	return q->messages + messages > BATCH ? done(s, q) : 0;
}

/* A refusal may have words. */
static void ask_for_words(int s)
{
	int on = 1;

	setsockopt(s, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof(on));
}

static int socket_for_links(void)
{
	struct sockaddr_nl address = { .nl_family = AF_NETLINK };
	socklen_t size = sizeof(address);
	int s = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

	bind(s, (struct sockaddr *)&address, size);
	getsockname(s, (struct sockaddr *)&address, &size);
	return s;
}

/* Whether there is room for so many more fds. */
static int room_for(uint64_t fds)
{
	struct rlimit limit;
	struct stat status;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || stat("/proc/self/fd", &status) < 0)
		return -1;
	return (uint64_t)status.st_size + fds <= limit.rlim_cur ? 0 : -1;
}

struct bridge {
	uint32_t index, mtu, ports;
};

/* A bridge by its name: that it is one, and how many ports it has. */
static int look_up(int s, const char *name, struct bridge *bridge)
{
	struct ethtool_drvinfo info = { .cmd = ETHTOOL_GDRVINFO };
	int ports[1024] = { 0 };
	unsigned long arguments[4] = { BRCTL_GET_PORT_LIST, (unsigned long)(uintptr_t)ports, 1024, 0 };
	struct ifreq request;

	strncpy(request.ifr_name, name, IFNAMSIZ);
	if (ioctl(s, SIOCGIFINDEX, &request) < 0)
		return -1;
	bridge->index = (uint32_t)request.ifr_ifindex;
	if (ioctl(s, SIOCGIFMTU, &request) < 0)
		return -1;
	bridge->mtu = (uint32_t)request.ifr_mtu;
	request.ifr_data = (void *)&info;
	if (ioctl(s, SIOCETHTOOL, &request) < 0 || strcmp(info.driver, "bridge") != 0)
		return -1;
	request.ifr_data = (void *)arguments;
	if (ioctl(s, SIOCDEVPRIVATE, &request) < 0)
		return -1;
	bridge->ports = 0;
	for (int port = 0; port < 1024; port++)
		bridge->ports += ports[port] != 0;
	return 0;
}

/* The ifindex, and proof that every queue is of that device: its MAC, as the fds and as rtnetlink have it. */
static int identify(int s, const char *name, int queues, const int *fds)
{
	struct ifinfomsg body = { 0 };
	uint32_t mask = RTEXT_FILTER_SKIP_STATS;
	struct ifreq request;
	char answer[8192];
	struct nlmsghdr *m = (struct nlmsghdr *)answer;

	for (int i = 0; i < queues; i++)
		if (ioctl(fds[i], SIOCGIFHWADDR, &request) < 0)
			return -1;
	memset(m, 0, SIZE);
	m->nlmsg_len = (uint32_t)NLMSG_LENGTH(sizeof(body));
	m->nlmsg_type = RTM_GETLINK;
	m->nlmsg_flags = NLM_F_REQUEST;
	add(m, IFLA_IFNAME, name, strlen(name) + 1);
	add(m, IFLA_EXT_MASK, &mask, sizeof(mask));
	if (send(s, m, m->nlmsg_len, 0) < 0 || receive(s, answer, sizeof(answer)) < 0 || m->nlmsg_type != RTM_NEWLINK)
		return -1;
	return ((const struct ifinfomsg *)NLMSG_DATA(m))->ifi_index;
}

/* The TAP's MAC, of its number. */
static void mac_of(uint32_t number, uint8_t *mac)
{
	memcpy(mac, (const uint8_t[]){ 0xfe, 0x54, 0x00 }, 3);
	memcpy(mac + 3, &number, 3);
}

static int set_mac(int fd, const uint8_t *mac)
{
	struct ifreq request = { .ifr_hwaddr.sa_family = ARPHRD_ETHER };

	memcpy(request.ifr_hwaddr.sa_data, mac, 6);
	return ioctl(fd, SIOCSIFHWADDR, &request);
}

/* One that no other link has, until it is known to be ours. */
static int set_unique_mac(int fd)
{
	uint8_t mac[6];

	if (getrandom(mac, sizeof(mac), 0) < 0)
		return -1;
	mac[0] = 0xfe;
	return set_mac(fd, mac);
}

/* Whether it still has the MAC it was given. */
static int has_mac(int fd, uint32_t number)
{
	struct ifreq request;
	uint8_t mac[6];

	mac_of(number, mac);
	return ioctl(fd, SIOCGIFHWADDR, &request) < 0 || memcmp(request.ifr_hwaddr.sa_data, mac, 6) != 0 ? -1 : 0;
}

static int make_tap(const char *name, uint32_t number, int queues, int *fds, int s)
{
	struct ifreq request;
	uint8_t mac[6];
	int index;

	for (int i = 0; i < queues; i++) {
		memset(&request, 0, sizeof(request));
		memcpy(request.ifr_name, name, IFNAMSIZ);
		request.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (queues > 1 ? IFF_MULTI_QUEUE : 0) |
					    (i == 0 ? IFF_TUN_EXCL : 0));
		fds[i] = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
		if (fds[i] < 0 || ioctl(fds[i], TUNSETIFF, &request) < 0 || (i == 0 && set_unique_mac(fds[0]) < 0))
			return -1;
	}
	index = identify(s, name, queues, fds);
	mac_of(number, mac);
	return set_mac(fds[0], mac) < 0 ? -1 : index;
}

static int put_noqueue(int s, struct queue *q, int index)
{
	struct tcmsg body = { .tcm_ifindex = index, .tcm_parent = TC_H_ROOT };
	struct nlmsghdr *m = begin(q, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, &body, sizeof(body));

	add(m, TCA_KIND, "noqueue", sizeof("noqueue"));
	return end(s, q, m);
}

/* A limit of what it gets, 1000 kB/s: HTB, its class, and SFQ below that, which a kernel may not have. */
static int put_limit(int s, struct queue *q, int index)
{
	struct tcmsg root = { .tcm_ifindex = index, .tcm_handle = 0x10000, .tcm_parent = TC_H_ROOT };
	struct tcmsg class = { .tcm_ifindex = index, .tcm_handle = 0x10001, .tcm_parent = 0x10000 };
	struct tcmsg leaf = { .tcm_ifindex = index, .tcm_handle = 0x20000, .tcm_parent = 0x10001 };
	struct tc_ratespec rate = {
		.cell_log = 3, .linklayer = TC_LINKLAYER_ETHERNET, .cell_align = -1, .rate = 1000000
	};
	struct {
		struct rtattr head;
		struct tc_htb_glob value;
	} tree = { { 24, TCA_HTB_INIT }, { .version = 3, .rate2quantum = 10, .defcls = 1 } };
	struct {
		struct rtattr head;
		struct tc_htb_opt value;
	} numbers = { { 48, TCA_HTB_PARMS },
		      { .rate = rate, .ceil = rate, .buffer = 25000, .cbuffer = 25000, .quantum = 85 } };
	struct tc_sfq_qopt_v1 sfq = { .v0.perturb_period = 10 };
	struct nlmsghdr *m = begin(q, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, &root, sizeof(root));
	int failed;

	add(m, TCA_KIND, "htb", sizeof("htb"));
	add(m, TCA_OPTIONS, &tree, sizeof(tree));
	failed = end(s, q, m);
	m = begin(q, RTM_NEWTCLASS, NLM_F_CREATE | NLM_F_EXCL, &class, sizeof(class));
	add(m, TCA_KIND, "htb", sizeof("htb"));
	add(m, TCA_OPTIONS, &numbers, sizeof(numbers));
	failed |= end(s, q, m);
	m = begin(q, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &leaf, sizeof(leaf));
	add(m, TCA_KIND, "sfq", sizeof("sfq"));
	add(m, TCA_OPTIONS, &sfq, sizeof(sfq));
	return failed | end(s, q, m);
}

static int put_link(int s, struct queue *q, int index, uint32_t number, const struct bridge *bridge)
{
	struct ifinfomsg body = { .ifi_index = index };
	struct nlmsghdr *m = begin(q, RTM_NEWLINK, 0, &body, sizeof(body));
	uint8_t mac[6];
	uint32_t mtu = bridge ? bridge->mtu : 1500;
	/* IFLA_AF_SPEC { AF_INET6 { IFLA_INET6_ADDR_GEN_MODE none } } */
	struct {
		struct rtattr inet6, mode;
		uint8_t value[4];
	} family = { { 12, AF_INET6 }, { 5, IFLA_INET6_ADDR_GEN_MODE }, { IN6_ADDR_GEN_MODE_NONE } };

	mac_of(number, mac);
	add(m, IFLA_ADDRESS, mac, 6);
	add(m, IFLA_MTU, &mtu, 4);
	add(m, IFLA_IFALIAS, MARK, strlen(MARK));
	if (bridge && bridge->index)
		add(m, IFLA_MASTER, &bridge->index, 4);
	add(m, IFLA_AF_SPEC, &family, sizeof(family));
	return end(s, q, m);
}

/* The guest's MAC, in the bridge's forwarding table. */
static int put_fdb(int s, struct queue *q, int index, uint32_t number)
{
	struct ndmsg body = {
		.ndm_family = AF_BRIDGE, .ndm_ifindex = index, .ndm_state = NUD_NOARP, .ndm_flags = NTF_MASTER
	};
	struct nlmsghdr *m = begin(q, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &body, sizeof(body));
	uint8_t mac[6];

	mac_of(number, mac);
	mac[0] = 0x52;
	add(m, NDA_LLADDR, mac, 6);
	return end(s, q, m);
}

/* By the name that it has before and after. */
static int coalesce(int s, int fd)
{
	struct ethtool_coalesce asked = { .cmd = ETHTOOL_SCOALESCE, .rx_max_coalesced_frames = 32 };
	struct ifreq before = { 0 }, after = { 0 }, request;

	if (ioctl(fd, TUNGETIFF, &before) < 0)
		return -1;
	request = before;
	request.ifr_data = (void *)&asked;
	if (ioctl(s, SIOCETHTOOL, &request) < 0 || ioctl(fd, TUNGETIFF, &after) < 0)
		return -1;
	return memcmp(before.ifr_name, after.ifr_name, IFNAMSIZ) == 0 ? 0 : -1;
}

static int put_up(int s, struct queue *q, int index, int settings)
{
	struct ifinfomsg body = { .ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP };
	struct nlmsghdr *m = begin(q, RTM_NEWLINK, 0, &body, sizeof(body));
	/* Of IFLA_LINKINFO: isolated, and neither learning nor flood */
	struct {
		struct rtattr kind;
		char bridge[8];
		struct rtattr data, isolated;
		uint8_t yes[4];
		struct rtattr learning;
		uint8_t no[4];
		struct rtattr flood;
		uint8_t none[4];
	} port = { .kind = { 11, IFLA_INFO_SLAVE_KIND },
		   .bridge = "bridge",
		   .data = { 28, IFLA_INFO_SLAVE_DATA },
		   .isolated = { 5, IFLA_BRPORT_ISOLATED },
		   .yes = { 1 },
		   .learning = { 5, IFLA_BRPORT_LEARNING },
		   .flood = { 5, IFLA_BRPORT_UNICAST_FLOOD } };

	if (settings)
		add(m, IFLA_LINKINFO, &port, sizeof(port));
	return end(s, q, m);
}

/* Of each port what can be set of one, before it is up. */
static int set_ports(int s, struct queue *q, int first, int count, int queues, const int *fds, const int *indexes)
{
	int failed = 0;

	for (int i = 0; i < count; i++)
		failed |= put_fdb(s, q, indexes[i], (uint32_t)(first + i));
	failed |= done(s, q);
	for (int i = 0; i < count; i++)
		failed |= coalesce(s, fds[i * queues]);
	return failed;
}

/*
 * Open count NICs, from "floor<first>" on, of so many queues, going round n_bridges bridges, BRIDGES at the most;
 * fds[count * queues], indexes[count]. With settings each port has all there are, but VLANs; limited, each has a limit
 * of what it gets. 0 or -1.
 */
__attribute__((visibility("default"))) int floor_open(int first, int count, int queues, const char *const *bridges,
						      int n_bridges, int *fds, int *indexes, int settings, int limited)
{
	int s = socket_for_links(), failed = room_for((uint64_t)count * (uint64_t)queues);
	struct bridge found[BRIDGES];
	struct queue q = { 0 };
	struct stat udevd;
	char name[IFNAMSIZ] = { 0 };

	if (limited)
		ask_for_words(s);
	for (int i = 0; i < n_bridges; i++)
		failed |= look_up(s, bridges[i], &found[i]);
	for (int i = 0; i < count; i++) {
		snprintf(name, sizeof(name), "floor%d", first + i);
		indexes[i] = make_tap(name, (uint32_t)(first + i), queues, fds + i * queues, s);
		failed |= indexes[i] < 0;
	}
	for (int i = 0; i < count && !limited; i++)
		failed |= put_noqueue(s, &q, indexes[i]);
	for (int i = 0; i < count; i++)
		failed |= put_link(s, &q, indexes[i], (uint32_t)(first + i), n_bridges ? &found[i % n_bridges] : NULL);
	if (settings)
		failed |= set_ports(s, &q, first, count, queues, fds, indexes);
	for (int i = 0; i < count && limited; i++)
		failed |= room_in(s, &q, 3) | put_limit(s, &q, indexes[i]);
	failed |= done(s, &q);
	for (int i = 0; i < count; i++)
		failed |= put_up(s, &q, indexes[i], settings);
	failed |= done(s, &q);
	for (int i = 0; i < count; i++)
		failed |= has_mac(fds[i * queues], (uint32_t)(first + i));
	close(s);
	stat("/run/udev/control", &udevd); /* whether there is one that may set other MACs yet */
	return failed ? -1 : 0;
}

/* ---- macvtaps ------------------------------------------------------------------------------------------ */

static int hear_uevents(void)
{
	struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	int s = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);

	bind(s, (struct sockaddr *)&address, sizeof(address));
	return s;
}

/* Of the device that has been made last: major and minor number. */
static dev_t device_of(int events, int index)
{
	char text[4096], name[32];
	ssize_t length;

	snprintf(name, sizeof(name), "DEVNAME=tap%d", index);
	while ((length = receive(events, text, sizeof(text) - 1)) > 0) {
		unsigned long major = 0, minor = 0;
		int ours = 0;

		text[length] = 0;
		for (const char *at = text; at < text + length; at += strlen(at) + 1) {
			ours |= strcmp(at, name) == 0;
			if (strncmp(at, "MAJOR=", 6) == 0)
				major = strtoul(at + 6, NULL, 10);
			if (strncmp(at, "MINOR=", 6) == 0)
				minor = strtoul(at + 6, NULL, 10);
		}
		if (ours)
			return makedev((unsigned int)major, (unsigned int)minor);
	}
	return 0;
}

/* The link, and its mark. */
static int put_macvtap(int s, struct queue *q, const char *name, int index, uint32_t number, int parent, uint32_t mtu)
{
	struct ifinfomsg body = { .ifi_index = index };
	struct nlmsghdr *m = begin(q, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &body, sizeof(body));
	struct bridge none = { .mtu = mtu };
	uint8_t mac[6];
	/* IFLA_LINKINFO { macvtap, { IFLA_MACVLAN_MODE vepa } } */
	struct {
		struct rtattr kind;
		char macvtap[8];
		struct rtattr data, mode;
		uint32_t vepa;
	} info = { { 12, IFLA_INFO_KIND }, "macvtap", { 12, IFLA_INFO_DATA }, { 8, IFLA_MACVLAN_MODE }, 2 };

	mac_of(number, mac);
	add(m, IFLA_IFNAME, name, strlen(name) + 1);
	add(m, IFLA_LINK, &parent, 4);
	add(m, IFLA_ADDRESS, mac, 6);
	add(m, IFLA_LINKINFO, &info, sizeof(info));
	end(s, q, m);
	none.index = 0;
	put_link(s, q, index, number, &none);
	return done(s, q);
}

static int open_macvtap(const char *name, uint32_t number, const char *parent, int queues, int *fds, int s)
{
	int events = hear_uevents(), index, failed;
	struct ifreq request = { 0 };
	char path[64];
	struct queue q = { 0 };
	uint32_t random, mtu;

	if (getrandom(&random, sizeof(random), 0) < 0)
		return -1;
	index = (int)((random & 0x0fffffff) | 0x10000000);
	strncpy(request.ifr_name, parent, IFNAMSIZ - 1);
	failed = ioctl(s, SIOCGIFMTU, &request);
	mtu = (uint32_t)request.ifr_mtu;
	failed |= ioctl(s, SIOCGIFINDEX, &request);
	failed |= put_macvtap(s, &q, name, index, number, request.ifr_ifindex, mtu);
	snprintf(path, sizeof(path), "/dev/.vhostnet-tap%d", index);
	failed |= mknod(path, S_IFCHR | 0600, device_of(events, index));
	for (int i = 0; i < queues; i++) {
		memset(&request, 0, sizeof(request));
		request.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (queues > 1 ? IFF_MULTI_QUEUE : 0));
		fds[i] = open(path, O_RDWR | O_CLOEXEC);
		failed |= ioctl(fds[i], TUNSETIFF, &request);
	}
	unlink(path);
	failed |= ioctl(fds[queues - 1], TUNGETIFF, &request) | ioctl(s, SIOCGIFINDEX, &request);
	close(events);
	return failed || request.ifr_ifindex != index ? -1 : index;
}

/*
 * Open count macvtaps from "floor<first>" on, of so many queues, on one parent. *home is the network namespace, which
 * whoever closes them will want.
 */
__attribute__((visibility("default"))) int floor_open_direct(int first, int count, int queues, const char *parent,
							     int *fds, int *indexes, int *home)
{
	int s = socket_for_links(), failed = room_for((uint64_t)count * (uint64_t)queues);
	struct queue q = { 0 };
	struct stat status;
	char name[IFNAMSIZ] = { 0 };

	failed |= stat("/proc/thread-self/ns/net", &status);
	*home = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	for (int i = 0; i < count; i++) {
		snprintf(name, sizeof(name), "floor%d", first + i);
		indexes[i] = open_macvtap(name, (uint32_t)(first + i), parent, queues, fds + i * queues, s);
		failed |= indexes[i] < 0;
	}
	for (int i = 0; i < count; i++)
		failed |= put_noqueue(s, &q, indexes[i]);
	failed |= done(s, &q);
	for (int i = 0; i < count; i++)
		failed |= put_up(s, &q, indexes[i], 0);
	failed |= done(s, &q);
	close(s);
	stat("/run/udev/control", &status);
	return failed ? -1 : 0;
}

/* Delete links in one round, by a group of their own. For between the rounds: no check of what else is in it. */
__attribute__((visibility("default"))) int floor_delete(int count, const int *indexes, uint32_t group)
{
	int s = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE), failed = 0;
	struct ifinfomsg body = { 0 };
	struct queue q = { 0 };
	struct nlmsghdr *m;

	for (int i = 0; i < count; i++) {
		body.ifi_index = indexes[i];
		m = begin(&q, RTM_NEWLINK, 0, &body, sizeof(body));
		add(m, IFLA_GROUP, &group, 4);
		failed |= end(s, &q, m);
	}
	failed |= done(s, &q);
	body.ifi_index = 0;
	m = begin(&q, RTM_DELLINK, 0, &body, sizeof(body));
	add(m, IFLA_GROUP, &group, 4);
	failed |= end(s, &q, m) | done(s, &q);
	close(s);
	return failed ? -1 : 0;
}

/* Take a NIC that is parked on its bridge: MAC, mark and UP, in one exchange. 0 or -1. */
__attribute__((visibility("default"))) int floor_take(int index, uint32_t number)
{
	int s = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE), failed = 0;
	struct ifinfomsg body = { .ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP };
	uint8_t mac[6] = { 0xfe, 0x54, 0x01 };
	struct queue q = { 0 };
	struct nlmsghdr *m = begin(&q, RTM_NEWLINK, 0, &body, sizeof(body));

	memcpy(mac + 3, &number, 3);
	add(m, IFLA_ADDRESS, mac, 6);
	add(m, IFLA_IFALIAS, MARK, strlen(MARK));
	failed |= end(s, &q, m) | done(s, &q);
	close(s);
	return failed ? -1 : 0;
}
