/* One function an act. Those on rtnetlink only write their message; the loop sends. */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>

#include <linux/ethtool.h>
#include <linux/if.h>
#include <linux/if_bridge.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <linux/virtio_net.h>

#include "acts.h"
#include "calls.h"
#include "links.h"
#include "removal.h"
#include "tc.h"
#include "vhost.h"

enum {
	IDENTIFY_TRIES = 3,
	IPV6_MIN_MTU = 1280,
};

/* With the ifindex: unlinked again as soon as the queues are open. */
#define NODE "/dev/.vhostnet-tap"

/* ---- TAP_OPEN -------------------------------------------------------------------------------------- */

static void name_request(struct ifreq *request, const struct vn_nic *nic)
{
	memset(request, 0, sizeof(*request));
	memcpy(request->ifr_name, nic->name, VN_IFNAMSIZ);
}

/*
 * A MAC that no other link has, by which this device can be told from all of them. It is set at once, before udev looks
 * whether the MAC is still the kernel's own random one and gives it another.
 */
static int set_unique_mac(int tap, struct vn_act *act)
{
	uint8_t mac[ETH_ALEN];
	int rc;

	if (get_random(mac, sizeof(mac), 0) < 0)
		return refused(act, VN_CALL_GETRANDOM);
	mac[0] = 0xfe;
	rc = set_mac(tap, mac);
	act->call = VN_CALL_SIOCSIFHWADDR;
	return rc;
}

/* One queue; the first creates the device and must be alone in that, unless the device is there. */
static int open_queue(struct vn_nic *nic, struct vn_act *act)
{
	struct ifreq request;
	int fd = open_retry(nic->tap_path, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return refused(act, VN_CALL_OPEN);
	nic->tap_fds[nic->n_tap++] = fd;
	name_request(&request, nic);
	request.ifr_flags = (short)(nic->tun_flags | (nic->n_tap == 1 && !nic->adopted ? IFF_TUN_EXCL : 0));
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

/* The link that has the NIC's name now; its ifindex is 0 where there is none. */
static int find_link(struct run *run, const struct vn_nic *nic, struct vn_act *act, struct vn_link *link)
{
	int rc;

	memset(link, 0, sizeof(*link));
	memcpy(link->name, nic->name, VN_IFNAMSIZ);
	put_lookup(&run->nl, link, 0);
	rc = nl_exchange(&run->nl, take_link, link, &act->call);
	if (rc == 0)
		act->call = VN_CALL_RTM_GETLINK;
	return rc;
}

static int identify_once(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	struct vn_link link;
	uint8_t mac[ETH_ALEN];
	int rc = common_mac(nic, mac);

	act->call = VN_CALL_SIOCGIFHWADDR;
	if (rc < 0)
		return rc;
	rc = find_link(run, nic, act, &link);
	if (rc < 0)
		return rc;
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

/* ---- ADOPT ----------------------------------------------------------------------------------------- */

/* What a QEMU that had it may have left in it: offloads that the next reader has not asked for, and a larger header. */
static int forget_the_last(const struct vn_nic *nic, struct vn_act *act)
{
	int size = sizeof(struct virtio_net_hdr);

	if (ioctl_retry(nic->tap_fds[0], TUNSETOFFLOAD, NULL) < 0)
		return refused(act, VN_CALL_TUNSETOFFLOAD);
	if (ioctl_retry(nic->tap_fds[0], TUNSETVNETHDRSZ, &size) < 0)
		return refused(act, VN_CALL_TUNSETVNETHDRSZ);
	return 0;
}

/* Every queue is of the link that was there before: had it gone, TUNSETIFF would have made another. */
static int is_still(struct run *run, const struct vn_nic *nic, struct vn_act *act, const struct vn_link *before)
{
	struct vn_link now;
	uint8_t mac[ETH_ALEN];
	int rc = find_link(run, nic, act, &now);

	if (rc < 0)
		return rc;
	if (now.ifindex != before->ifindex)
		return -ESTALE;
	rc = common_mac(nic, mac);
	act->call = VN_CALL_SIOCGIFHWADDR;
	if (rc == 0 && (now.mac_len != ETH_ALEN || memcmp(now.mac, mac, ETH_ALEN) != 0))
		rc = -ESTALE;
	return rc;
}

/* The queues of a macvtap, by its device's node. */
static int open_node(struct vn_nic *nic, struct vn_act *act, const char *path)
{
	for (uint32_t queue = 0; queue < nic->queues; queue++) {
		struct ifreq request = { .ifr_flags = (short)nic->tun_flags };
		int fd = open_retry(path, O_RDWR | O_CLOEXEC);

		act->queue = (int32_t)queue;
		if (fd < 0)
			return refused(act, VN_CALL_OPEN);
		nic->tap_fds[nic->n_tap++] = fd;
		if (ioctl_retry(fd, TUNSETIFF, &request) < 0)
			return refused(act, VN_CALL_TUNSETIFF);
	}
	act->queue = -1;
	return 0;
}

/*
 * Whether it can have so many queues is its own, and so is what it was made as. A macvtap's are had by the node that it
 * has where nodes are made; that it is this one's is seen when it is open.
 */
static int open_adopted(struct vn_nic *nic, struct vn_act *act, const struct vn_link *link)
{
	char path[sizeof("/dev/tap") + 16];
	int rc = 0;

	nic->macvtap = strcmp(link->kind, "macvtap") == 0;
	if (nic->macvtap) {
		snprintf(path, sizeof(path), "/dev/tap%d", link->ifindex);
		return open_node(nic, act, path);
	}
	act->call = VN_CALL_TUNSETIFF;
	if (!(link->tun_flags & IFF_TAP) || (nic->queues > 1 && !(link->tun_flags & IFF_MULTI_QUEUE)))
		return -EINVAL;
	nic->tun_flags = (nic->tun_flags & ~(uint32_t)IFF_MULTI_QUEUE) | (link->tun_flags & IFF_MULTI_QUEUE);
	for (uint32_t queue = 0; queue < nic->queues && rc == 0; queue++) {
		rc = open_queue(nic, act);
		if (rc < 0)
			act->queue = (int32_t)queue;
	}
	return rc;
}

static int adopt(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	struct vn_link link;
	int rc = find_link(run, nic, act, &link);

	if (rc < 0)
		return rc;
	if (link.ifindex == 0)
		return -ENODEV;
	rc = open_adopted(nic, act, &link);
	if (rc < 0)
		return rc;
	rc = is_still(run, nic, act, &link);
	if (rc < 0)
		return rc;
	nic->ifindex = link.ifindex;
	nic->mtu = link.mtu;
	return forget_the_last(nic, act);
}

/* ---- what a link is told ------------------------------------------------------------------------- */

static struct nlmsghdr *begin_link_of(struct run *run, const struct vn_nic *nic, uint32_t tag)
{
	struct ifinfomsg body = { .ifi_family = AF_UNSPEC, .ifi_index = nic->ifindex };

	return nl_begin(&run->nl, RTM_NEWLINK, NLM_F_ACK, tag, &body, sizeof(body));
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

/* What is the link's own, and its bridge. */
static void set_link(struct run *run, const struct vn_nic *nic, uint32_t tag)
{
	struct nlmsghdr *message = begin_link_of(run, nic, tag);

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
}

/* ---- MACVTAP --------------------------------------------------------------------------------------- */

/* The link, whole and down. Its ifindex is of our choosing: whatever is lost on the way, it is known what to delete. */
static void put_macvtap(struct run *run, const struct vn_nic *nic)
{
	uint32_t flags = nic->all_multicast ? IFF_ALLMULTI : 0;
	struct ifinfomsg body = {
		.ifi_family = AF_UNSPEC, .ifi_index = nic->ifindex, .ifi_flags = flags, .ifi_change = flags
	};
	struct nlmsghdr *message =
		nl_begin(&run->nl, RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, 0, &body, sizeof(body));
	struct rtattr *info, *data;

	nl_attr(message, IFLA_IFNAME, nic->name, strlen(nic->name) + 1);
	nl_attr(message, IFLA_LINK, &nic->parent_index, sizeof(nic->parent_index));
	nl_attr(message, IFLA_ADDRESS, nic->mac, sizeof(nic->mac));
	info = nl_attr(message, IFLA_LINKINFO, NULL, 0);
	nl_attr(message, IFLA_INFO_KIND, "macvtap", sizeof("macvtap"));
	data = nl_attr(message, IFLA_INFO_DATA, NULL, 0);
	nl_attr(message, IFLA_MACVLAN_MODE, &nic->mode, sizeof(nic->mode));
	nl_end_nest(message, data);
	nl_end_nest(message, info);
	nl_end(&run->nl, message);
}

static int take_both(void *context, uint32_t tag, const struct nlmsghdr *message)
{
	int *errors = context;

	if (message->nlmsg_type != NLMSG_ERROR || errors[tag] != UNANSWERED)
		return 0;
	return nl_error(message, &errors[tag]);
}

/*
 * In one send with what the kernel takes of a link that is there, and not in the message that makes it: the mark, and
 * for passthru the MAC, which is the parent's. Where the first is refused the second finds no link of that ifindex.
 */
static int make_macvtap(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	int errors[2] = { UNANSWERED, UNANSWERED }, lost;

	put_macvtap(run, nic);
	set_link(run, nic, 1);
	lost = nl_exchange(&run->nl, take_both, errors, &act->call);
	if (errors[0] < 0)
		nic->ifindex = 0;
	for (int i = 0; i < 2; i++)
		if (errors[i] < 0) {
			act->call = VN_CALL_RTM_NEWLINK;
			return errors[i];
		}
	return lost;
}

/* One that nobody has: out of 2^28 above all that the kernel gives by itself. */
static int choose_ifindex(struct vn_nic *nic, struct vn_act *act)
{
	uint32_t number;

	if (get_random(&number, sizeof(number), 0) < 0)
		return refused(act, VN_CALL_GETRANDOM);
	nic->ifindex = (int32_t)((number & 0x0fffffff) | 0x10000000);
	return 0;
}

/* As long as the link is there its device number is no other's: it still is, so every queue is of it. */
static int still_has(struct run *run, const struct vn_nic *nic, struct vn_act *act)
{
	struct ifreq request = { 0 };

	if (ioctl_retry(nic->tap_fds[nic->n_tap - 1], TUNGETIFF, &request) < 0)
		return refused(act, VN_CALL_TUNGETIFF);
	if (ioctl_retry(run->nl.fd, SIOCGIFINDEX, &request) < 0)
		return refused(act, VN_CALL_SIOCGIFINDEX);
	act->call = VN_CALL_SIOCGIFINDEX;
	return request.ifr_ifindex == nic->ifindex ? 0 : -ESTALE;
}

/* By a node of our own: nobody can vouch for what others call it. */
static int open_macvtap(struct run *run, struct vn_nic *nic, struct vn_act *act, int events)
{
	char path[sizeof(NODE) + 16];
	dev_t number = 0;
	int rc = make_macvtap(run, nic, act);

	if (rc < 0)
		return rc;
	rc = device_number(events, nic->ifindex, &number);
	act->call = VN_CALL_UEVENT;
	if (rc < 0)
		return rc;
	snprintf(path, sizeof(path), NODE "%d", nic->ifindex);
	if (mknod_retry(path, number) < 0)
		return refused(act, VN_CALL_MKNOD);
	rc = open_node(nic, act, path);
	unlink(path);
	return rc < 0 ? rc : still_has(run, nic, act);
}

static int macvtap(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	int rc = choose_ifindex(nic, act), events;

	if (rc < 0)
		return rc;
	events = open_uevents();
	if (events < 0) {
		act->call = VN_CALL_UEVENT;
		nic->ifindex = 0;
		return events;
	}
	rc = open_macvtap(run, nic, act, events);
	close(events);
	return rc;
}

/* ---- VHOST_OPEN ------------------------------------------------------------------------------------ */

static void close_vhost(struct vn_nic *nic)
{
	while (nic->n_vhost > 0)
		close(nic->vhost_fds[--nic->n_vhost]);
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

/* ---- SELFTEST -------------------------------------------------------------------------------------- */

static int selftest(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	(void)run;
	return try_vhost(nic->vhost_path, nic->tap_fds[0], act);
}

/* ---- ATTACH ---------------------------------------------------------------------------------------- */

/* Queue 0 is attached always; QEMU leaves the others detached when it ends. A macvtap does not say which: EINVAL does.
 */
static int attach(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	(void)run;
	for (uint32_t queue = 1; queue < nic->n_tap; queue++) {
		struct ifreq request = { 0 };

		act->queue = (int32_t)queue;
		if (ioctl_retry(nic->tap_fds[queue], TUNGETIFF, &request) < 0)
			return refused(act, VN_CALL_TUNGETIFF);
		if (!(request.ifr_flags & IFF_DETACH_QUEUE) && !nic->macvtap)
			continue;
		memset(&request, 0, sizeof(request));
		request.ifr_flags = IFF_ATTACH_QUEUE;
		if (ioctl_retry(nic->tap_fds[queue], TUNSETQUEUE, &request) < 0 && !(nic->macvtap && errno == EINVAL))
			return refused(act, VN_CALL_TUNSETQUEUE);
	}
	act->queue = -1;
	return 0;
}

/* ---- on rtnetlink ---------------------------------------------------------------------------------- */

static uint32_t number(const struct run *run, const struct vn_act *act)
{
	return (uint32_t)(act - run->acts);
}

static struct nlmsghdr *begin_link(struct run *run, const struct vn_nic *nic, const struct vn_act *act)
{
	return begin_link_of(run, nic, number(run, act));
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

/* As a port of its bridge: in a message of its own link, and not in the one that makes it a port. */
static void put_port(struct nlmsghdr *message, const struct vn_nic *nic)
{
	struct rtattr *info = nl_attr(message, IFLA_LINKINFO, NULL, 0), *data;
	uint8_t on = 1, off = 0;

	nl_attr(message, IFLA_INFO_SLAVE_KIND, "bridge", sizeof("bridge"));
	data = nl_attr(message, IFLA_INFO_SLAVE_DATA, NULL, 0);
	if (nic->isolated)
		nl_attr(message, IFLA_BRPORT_ISOLATED, &on, sizeof(on));
	if (nic->set_fdb) {
		nl_attr(message, IFLA_BRPORT_LEARNING, &off, sizeof(off));
		nl_attr(message, IFLA_BRPORT_UNICAST_FLOOD, &off, sizeof(off));
	}
	message->nlmsg_len = NLMSG_ALIGN(message->nlmsg_len);
	nl_end_nest(message, data);
	nl_end_nest(message, info);
}

static int put_link(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	act->call = VN_CALL_RTM_NEWLINK;
	set_link(run, nic, number(run, act));
	return 0;
}

static struct nlmsghdr *begin_down(struct run *run, const struct vn_nic *nic, struct vn_act *act)
{
	struct nlmsghdr *message = begin_link(run, nic, act);
	struct ifinfomsg *body = NLMSG_DATA(message);

	act->call = VN_CALL_RTM_NEWLINK;
	body->ifi_change = IFF_UP;
	return message;
}

/* Down, and then off its bridge: with the port goes all that was set of it. */
static int put_leave(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	struct nlmsghdr *message = begin_down(run, nic, act);
	uint32_t none = 0;

	nl_attr(message, IFLA_MASTER, &none, sizeof(none));
	nl_end(&run->nl, message);
	return 0;
}

/* On its bridge as it is: what that has learned of the port goes, and nothing that was set. */
static int put_down(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	nl_end(&run->nl, begin_down(run, nic, act));
	return 0;
}

static int put_up(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	struct nlmsghdr *message = begin_link(run, nic, act);

	act->call = VN_CALL_RTM_NEWLINK;
	put_flag_up(message);
	if (nic->isolated || nic->set_fdb)
		put_port(message, nic);
	nl_end(&run->nl, message);
	return 0;
}

/* A message to the bridge about the VLANs of one port, as many as there is room for (room()). */
static void put_vlans(struct run *run, const struct vn_nic *nic, const struct vn_act *act, uint16_t type,
		      const struct vn_vlan *vlans, uint32_t n)
{
	struct ifinfomsg body = { .ifi_family = AF_BRIDGE, .ifi_index = nic->ifindex };
	struct nlmsghdr *message = nl_begin(&run->nl, type, NLM_F_ACK, number(run, act), &body, sizeof(body));
	struct rtattr *list = nl_attr(message, IFLA_AF_SPEC, NULL, 0);

	for (uint32_t i = 0; i < n; i++)
		nl_attr(message, IFLA_BRIDGE_VLAN_INFO, &vlans[i], sizeof(vlans[i]));
	nl_end_nest(message, list);
	nl_end(&run->nl, message);
}

static int put_vlan_add(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	act->call = VN_CALL_RTM_SETLINK;
	put_vlans(run, nic, act, RTM_SETLINK, nic->vlans, nic->n_vlans);
	return 0;
}

static bool wants(const struct vn_nic *nic, uint32_t vid)
{
	for (uint32_t i = 0; i < nic->n_vlans; i++) {
		uint32_t first = nic->vlans[i].vid;

		if (nic->vlans[i].flags & BRIDGE_VLAN_INFO_RANGE_BEGIN && i + 1 < nic->n_vlans)
			i++;
		if (first <= vid && vid <= nic->vlans[i].vid)
			return true;
	}
	return false;
}

/* The VLAN that every new port of its bridge is in, where the NIC is not to be. */
static int put_vlan_del(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	uint32_t vid = nic->bridge < 0 ? 0 : run->bridges[nic->bridge].default_vid;
	struct vn_vlan vlan = { .vid = (uint16_t)vid };

	act->call = VN_CALL_RTM_DELLINK;
	if (vid > 0 && !wants(nic, vid))
		put_vlans(run, nic, act, RTM_DELLINK, &vlan, 1);
	return 0;
}

/* Static (NUD_NOARP): any other entry is refused on a port that is down. Without a VLAN it is in all of the port's. */
static void put_neighbour(struct run *run, const struct vn_nic *nic, uint32_t tag, uint16_t type, uint16_t flags)
{
	struct ndmsg body = {
		.ndm_family = AF_BRIDGE, .ndm_ifindex = nic->ifindex, .ndm_state = NUD_NOARP, .ndm_flags = NTF_MASTER
	};
	struct nlmsghdr *message = nl_begin(&run->nl, type, NLM_F_ACK | flags, tag, &body, sizeof(body));

	nl_attr(message, NDA_LLADDR, nic->guest_mac, sizeof(nic->guest_mac));
	nl_end(&run->nl, message);
}

static int put_fdb(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	act->call = VN_CALL_RTM_NEWNEIGH;
	put_neighbour(run, nic, number(run, act), RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE);
	return 0;
}

/* Dispensable: the guest may be at another port by now. */
static int put_unfdb(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	act->call = VN_CALL_RTM_DELNEIGH;
	put_neighbour(run, nic, number(run, act) | NL_DISPENSABLE, RTM_DELNEIGH, 0);
	return 0;
}

/* ethtool's ioctl takes a name, and a name can be changed: the TAP's fd has it, before and after. */
static int coalesce_once(struct run *run, const struct vn_nic *nic, struct vn_act *act)
{
	struct ethtool_coalesce asked = { .cmd = ETHTOOL_SCOALESCE, .rx_max_coalesced_frames = nic->frames };
	struct ifreq before = { 0 }, after = { 0 }, request;
	int tap = nic->tap_fds[0];

	if (ioctl_retry(tap, TUNGETIFF, &before) < 0)
		return refused(act, VN_CALL_TUNGETIFF);
	request = before;
	request.ifr_data = (void *)&asked;
	if (ioctl_retry(run->nl.fd, SIOCETHTOOL, &request) < 0)
		return refused(act, VN_CALL_ETHTOOL_SCOALESCE);
	if (ioctl_retry(tap, TUNGETIFF, &after) < 0)
		return refused(act, VN_CALL_TUNGETIFF);
	act->call = VN_CALL_ETHTOOL_SCOALESCE;
	return memcmp(before.ifr_name, after.ifr_name, VN_IFNAMSIZ) == 0 ? 0 : -ESTALE;
}

static int coalesce(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	int rc, tries = IDENTIFY_TRIES;

	do
		rc = coalesce_once(run, nic, act);
	while (rc == -ESTALE && --tries > 0);
	return rc;
}

static int put_tc(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	act->call = VN_CALL_RTM_NEWQDISC;
	put_bandwidth(&run->nl, nic, number(run, act));
	return 0;
}

/* Whoever is let in, before it stays. */
static int persist(struct run *run, struct vn_nic *nic, struct vn_act *act)
{
	int tap = nic->tap_fds[0];

	(void)run;
	if (nic->owner >= 0 && ioctl_retry(tap, TUNSETOWNER, (void *)(uintptr_t)nic->owner) < 0)
		return refused(act, VN_CALL_TUNSETOWNER);
	if (nic->group >= 0 && ioctl_retry(tap, TUNSETGROUP, (void *)(uintptr_t)nic->group) < 0)
		return refused(act, VN_CALL_TUNSETGROUP);
	if (ioctl_retry(tap, TUNSETPERSIST, (void *)1) < 0)
		return refused(act, VN_CALL_TUNSETPERSIST);
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

/* ---- all of them ----------------------------------------------------------------------------------- */

const struct act_kind ACTS[VN_ACTS] = {
	[VN_TAP_OPEN] = { tap_open, 0, 0, THERE, THERE },
	[VN_ADOPT] = { adopt, 0, 0, THERE | HELD, THERE },
	[VN_MACVTAP] = { macvtap, 0, 0, THERE | HELD, THERE },
	[VN_VHOST_OPEN] = { vhost_open, 0, 0, VHOST | GONE, VHOST },
	[VN_SELFTEST] = { selftest, 0, THERE, HELD, 0 },
	[VN_QDISC] = { put_qdisc, NL_BATCH, THERE, GONE, 0 },
	[VN_LEAVE] = { put_leave, NL_BATCH, HELD, GONE, 0 },
	[VN_LINK] = { put_link, NL_BATCH, THERE, GONE, 0 },
	[VN_VLAN_ADD] = { put_vlan_add, NL_BATCH, THERE, GONE, 0 },
	[VN_VLAN_DEL] = { put_vlan_del, NL_BATCH, THERE, GONE, 0 },
	[VN_FDB] = { put_fdb, NL_BATCH, THERE, GONE, 0 },
	[VN_COALESCE] = { coalesce, 0, THERE, GONE, 0 },
	[VN_TC] = { put_tc, NL_BATCH, THERE, GONE, 0 },
	[VN_UP] = { put_up, NL_BATCH, THERE, GONE, 0 },
	[VN_DOWN] = { put_down, NL_BATCH, HELD, GONE, 0 },
	[VN_UNFDB] = { put_unfdb, NL_BATCH, HELD, GONE, 0 },
	[VN_PERSIST] = { persist, 0, THERE, GONE, 0 },
	[VN_ATTACH] = { attach, 0, HELD, GONE, 0 },
	[VN_ALTNAME] = { put_altname, NL_BATCH, THERE, GONE, 0 },
	[VN_RENAME] = { put_rename, NL_BATCH, THERE, GONE, 0 },
	[VN_DELETE] = { NULL, DELETE_BATCH, HELD, GONE, GONE },
};
