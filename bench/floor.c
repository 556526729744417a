/*
 * The floor: the kernel calls that opening NICs takes, and nothing else. No checks that can be left out, no errors
 * but a count, no structure. What is slower than this is ours; what this takes is the kernel's.
 *
 * Compiled on the spot and loaded by bench/run.py, so that it runs in the same process, namespace and heap as what
 * it is compared with.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/if.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>

#define BATCH 64
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

		if (recv(s, answer, sizeof(answer), 0) < 0 || ((const struct nlmsgerr *)NLMSG_DATA(m))->error)
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
	if (send(s, m, m->nlmsg_len, 0) < 0 || recv(s, answer, sizeof(answer), 0) < 0 || m->nlmsg_type != RTM_NEWLINK)
		return -1;
	return ((const struct ifinfomsg *)NLMSG_DATA(m))->ifi_index;
}

static int make_tap(const char *name, int queues, int *fds, int s)
{
	struct ifreq request;

	for (int i = 0; i < queues; i++) {
		memset(&request, 0, sizeof(request));
		strncpy(request.ifr_name, name, IFNAMSIZ - 1);
		request.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (queues > 1 ? IFF_MULTI_QUEUE : 0) |
					    (i == 0 ? IFF_TUN_EXCL : 0));
		fds[i] = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
		if (fds[i] < 0 || ioctl(fds[i], TUNSETIFF, &request) < 0)
			return -1;
	}
	return identify(s, name, queues, fds);
}

static int put_noqueue(int s, struct queue *q, int index)
{
	struct tcmsg body = { .tcm_ifindex = index, .tcm_parent = TC_H_ROOT };
	struct nlmsghdr *m = begin(q, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, &body, sizeof(body));

	add(m, TCA_KIND, "noqueue", sizeof("noqueue"));
	return end(s, q, m);
}

static int put_link(int s, struct queue *q, int index, uint32_t number, uint32_t master)
{
	struct ifinfomsg body = { .ifi_index = index };
	struct nlmsghdr *m = begin(q, RTM_NEWLINK, 0, &body, sizeof(body));
	uint8_t mac[6] = { 0xfe, 0x54, 0x00 };
	uint32_t mtu = 1500;
	/* IFLA_AF_SPEC { AF_INET6 { IFLA_INET6_ADDR_GEN_MODE none } } */
	struct {
		struct rtattr inet6, mode;
		uint8_t value[4];
	} family = { { 12, AF_INET6 }, { 5, IFLA_INET6_ADDR_GEN_MODE }, { IN6_ADDR_GEN_MODE_NONE } };

	memcpy(mac + 3, &number, 3);
	add(m, IFLA_ADDRESS, mac, 6);
	add(m, IFLA_MTU, &mtu, 4);
	add(m, IFLA_IFALIAS, MARK, strlen(MARK));
	if (master)
		add(m, IFLA_MASTER, &master, 4);
	add(m, IFLA_AF_SPEC, &family, sizeof(family));
	return end(s, q, m);
}

static int put_up(int s, struct queue *q, int index)
{
	struct ifinfomsg body = { .ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP };

	return end(s, q, begin(q, RTM_NEWLINK, 0, &body, sizeof(body)));
}

/*
 * Open count NICs, from "floor<first>" on, of so many queues, going round n_masters bridges; fds[count * queues],
 * indexes[count]. 0 or -1.
 */
__attribute__((visibility("default"))) int floor_open(int first, int count, int queues, const uint32_t *masters,
						      int n_masters, int *fds, int *indexes)
{
	int s = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE), failed = 0;
	struct queue q = { 0 };
	char name[IFNAMSIZ];

	for (int i = 0; i < count; i++) {
		snprintf(name, sizeof(name), "floor%d", first + i);
		indexes[i] = make_tap(name, queues, fds + i * queues, s);
		failed |= indexes[i] < 0;
	}
	for (int i = 0; i < count; i++)
		failed |= put_noqueue(s, &q, indexes[i]);
	for (int i = 0; i < count; i++)
		failed |= put_link(s, &q, indexes[i], (uint32_t)(first + i), n_masters ? masters[i % n_masters] : 0);
	failed |= done(s, &q);
	for (int i = 0; i < count; i++)
		failed |= put_up(s, &q, indexes[i]);
	failed |= done(s, &q);
	close(s);
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
