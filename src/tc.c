/*
 * Traffic control: what holds a NIC to its bandwidth. It is the tree that libvirt makes of a TAP or a macvtap by
 * running tc, message by message, but for its fw filter: that one sends what is marked 1 to a class that is not there.
 */

#include <string.h>

#include <arpa/inet.h>

#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>

#include "tc.h"

#define ROOT TC_H_MAKE(1U << 16, 0)
#define CLASS TC_H_MAKE(1U << 16, 1)
#define LEAF TC_H_MAKE(2U << 16, 0)
#define INGRESS TC_H_MAKE(TC_H_INGRESS, 0)

enum {
	HTB_VERSION = 3,
	R2Q = 10,	    /* what tc says; our class has a quantum of its own */
	HTB_CELL = 3,	    /* as of tc's 1600 bytes of MTU; */
	POLICE_MTU = 65536, /* a frame of more is dropped: as libvirt has it, */
	POLICE_CELL = 9,    /* and of this */
	PERTURB = 10,	    /* seconds until SFQ hashes otherwise */
	THIS = 1,	    /* the only class */
};

bool sound_bandwidth(const struct vn_nic *nic)
{
	bool rooted = nic->rate > 0, policed = nic->police_rate > 0;

	return rooted == (nic->ceil > 0) && rooted == (nic->burst > 0) && rooted == (nic->ceil_burst > 0) &&
	       rooted == (nic->quantum > 0) && policed == (nic->police_burst > 0);
}

uint32_t bandwidth_messages(const struct vn_nic *nic)
{
	return (nic->held ? 1U : 0U) + (nic->rate ? 3U : 0U) + (nic->police_rate ? 2U : 0U);
}

size_t bandwidth_room(const struct vn_nic *nic)
{
	return bandwidth_messages(nic) * (size_t)NL_MESSAGE + (nic->police_rate ? RTA_SPACE(TC_RTAB_SIZE) : 0);
}

static struct nlmsghdr *begin(struct netlink *nl, uint32_t tag, uint16_t type, uint16_t flags, const struct tcmsg *body,
			      const char *kind)
{
	struct nlmsghdr *message = nl_begin(nl, type, NLM_F_ACK | flags, tag, body, sizeof(*body));

	nl_attr(message, TCA_KIND, kind, strlen(kind) + 1);
	return message;
}

/* A rate of 32 bits or more is said once more, in 64. */
static struct tc_ratespec narrow(uint64_t rate, uint8_t cell)
{
	return (struct tc_ratespec){ .cell_log = cell,
				     .linklayer = TC_LINKLAYER_ETHERNET,
				     .cell_align = -1,
				     .rate = rate < UINT32_MAX ? (uint32_t)rate : UINT32_MAX };
}

static void put_wide(struct nlmsghdr *message, uint16_t type, uint64_t rate)
{
	if (rate > UINT32_MAX)
		nl_attr(message, type, &rate, sizeof(rate));
}

/* HTB in the place of whatever is the root, so that there is never a queue for each of the device's 256. */
static void put_root(struct netlink *nl, const struct vn_nic *nic, uint32_t tag)
{
	struct tcmsg body = { .tcm_ifindex = nic->ifindex, .tcm_handle = ROOT, .tcm_parent = TC_H_ROOT };
	struct tc_htb_glob tree = { .version = HTB_VERSION, .rate2quantum = R2Q, .defcls = THIS };
	struct nlmsghdr *message = begin(nl, tag, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, &body, "htb");
	struct rtattr *options = nl_attr(message, TCA_OPTIONS, NULL, 0);

	nl_attr(message, TCA_HTB_INIT, &tree, sizeof(tree));
	nl_end_nest(message, options);
	nl_end(nl, message);
}

static void put_class(struct netlink *nl, const struct vn_nic *nic, uint32_t tag)
{
	struct tcmsg body = { .tcm_ifindex = nic->ifindex, .tcm_handle = CLASS, .tcm_parent = ROOT };
	struct tc_htb_opt class = { .rate = narrow(nic->rate, HTB_CELL),
				    .ceil = narrow(nic->ceil, HTB_CELL),
				    .buffer = nic->burst,
				    .cbuffer = nic->ceil_burst,
				    .quantum = nic->quantum };
	struct nlmsghdr *message = begin(nl, tag, RTM_NEWTCLASS, NLM_F_CREATE | NLM_F_EXCL, &body, "htb");
	struct rtattr *options = nl_attr(message, TCA_OPTIONS, NULL, 0);

	put_wide(message, TCA_HTB_RATE64, nic->rate);
	put_wide(message, TCA_HTB_CEIL64, nic->ceil);
	nl_attr(message, TCA_HTB_PARMS, &class, sizeof(class));
	nl_end_nest(message, options);
	nl_end(nl, message);
}

/* So that the flows share it fairly. A kernel without SFQ leaves the class its FIFO: the rate is the same. */
static void put_leaf(struct netlink *nl, const struct vn_nic *nic, uint32_t tag)
{
	struct tcmsg body = { .tcm_ifindex = nic->ifindex, .tcm_handle = LEAF, .tcm_parent = CLASS };
	struct tc_sfq_qopt_v1 queue = { .v0.perturb_period = PERTURB };
	struct nlmsghdr *message =
		begin(nl, tag | NL_DISPENSABLE, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &body, "sfq");

	nl_attr(message, TCA_OPTIONS, &queue, sizeof(queue));
	nl_end(nl, message);
}

static void put_ingress(struct netlink *nl, const struct vn_nic *nic, uint32_t tag, uint16_t type)
{
	struct tcmsg body = { .tcm_ifindex = nic->ifindex, .tcm_parent = TC_H_INGRESS };
	uint16_t flags = type == RTM_NEWQDISC ? NLM_F_CREATE | NLM_F_EXCL : 0;

	if (type == RTM_NEWQDISC)
		body.tcm_handle = INGRESS;
	nl_end(nl, begin(nl, tag, type, flags, &body, "ingress"));
}

/* The table is of kernels before 3.8: it must be there, and nobody reads it. */
static void put_police(struct nlmsghdr *message, const struct vn_nic *nic)
{
	static const uint8_t table[TC_RTAB_SIZE];
	struct tc_police limit = { .action = TC_POLICE_SHOT,
				   .burst = nic->police_burst,
				   .mtu = POLICE_MTU,
				   .rate = narrow(nic->police_rate, POLICE_CELL) };
	struct rtattr *police = nl_attr(message, TCA_U32_POLICE, NULL, 0);

	nl_attr(message, TCA_POLICE_TBF, &limit, sizeof(limit));
	nl_attr(message, TCA_POLICE_RATE, table, sizeof(table));
	put_wide(message, TCA_POLICE_RATE64, nic->police_rate);
	nl_end_nest(message, police);
}

/* All that comes in, of whatever protocol. */
static void put_filter(struct netlink *nl, const struct vn_nic *nic, uint32_t tag)
{
	struct tcmsg body = { .tcm_ifindex = nic->ifindex, .tcm_parent = INGRESS, .tcm_info = htons(ETH_P_ALL) };
	uint32_t class = THIS;
	union { /* and a key of zeros, which is any word at all */
		struct tc_u32_sel all;
		char space[sizeof(struct tc_u32_sel) + sizeof(struct tc_u32_key)];
	} match = { .all = { .flags = TC_U32_TERMINAL, .nkeys = 1 } };
	struct nlmsghdr *message = begin(nl, tag, RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, &body, "u32");
	struct rtattr *options = nl_attr(message, TCA_OPTIONS, NULL, 0);

	nl_attr(message, TCA_U32_CLASSID, &class, sizeof(class));
	nl_attr(message, TCA_U32_SEL, &match, sizeof(match));
	put_police(message, nic);
	nl_end_nest(message, options);
	nl_end(nl, message);
}

/* One that is held may have had another tree: QDISC has put its root away, and here goes the rest. */
void put_bandwidth(struct netlink *nl, const struct vn_nic *nic, uint32_t tag)
{
	if (nic->held)
		put_ingress(nl, nic, tag | NL_DISPENSABLE, RTM_DELQDISC);
	if (nic->rate) {
		put_root(nl, nic, tag);
		put_class(nl, nic, tag);
		put_leaf(nl, nic, tag);
	}
	if (nic->police_rate) {
		put_ingress(nl, nic, tag, RTM_NEWQDISC);
		put_filter(nl, nic, tag);
	}
}

uint32_t bandwidth_call(const struct nlmsghdr *message)
{
	switch (((const struct nlmsgerr *)NLMSG_DATA(message))->msg.nlmsg_type) {
	case RTM_DELQDISC:
		return VN_CALL_RTM_DELQDISC;
	case RTM_NEWTCLASS:
		return VN_CALL_RTM_NEWTCLASS;
	case RTM_NEWTFILTER:
		return VN_CALL_RTM_NEWTFILTER;
	default:
		return VN_CALL_RTM_NEWQDISC;
	}
}
