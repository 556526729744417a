/* What the kernel says of links: one by its name, and the bridges that NICs join. */

#include <errno.h>
#include <string.h>

#include <linux/ethtool.h>
#include <linux/if.h>
#include <linux/if_bridge.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>

#include "calls.h"
#include "links.h"

_Static_assert(VN_IFNAMSIZ == IFNAMSIZ, "the kernel's interface names have another size");

enum { BR_PORTS = VN_MAX_PORTS + 1 }; /* numbers a port can have; the first is never given */

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

/* A kernel without VLAN filtering has neither attribute. */
static void read_bridge(const struct rtattr *info, uint32_t *filtering, uint32_t *default_vid)
{
	const char *data = RTA_DATA(info);
	size_t left = RTA_PAYLOAD(info);
	const struct rtattr *a;
	uint16_t vid;

	while ((a = next_attr(&data, &left))) {
		if (a->rta_type == IFLA_BR_VLAN_FILTERING && RTA_PAYLOAD(a) == 1)
			*filtering = *(const uint8_t *)RTA_DATA(a) != 0;
		if (a->rta_type == IFLA_BR_VLAN_DEFAULT_PVID && RTA_PAYLOAD(a) == sizeof(vid)) {
			memcpy(&vid, RTA_DATA(a), sizeof(vid));
			*default_vid = vid;
		}
	}
}

static void read_info(struct vn_link *link, const struct rtattr *info)
{
	const char *data = RTA_DATA(info);
	size_t left = RTA_PAYLOAD(info);
	const struct rtattr *a;
	uint32_t vid;

	while ((a = next_attr(&data, &left))) {
		if (a->rta_type == IFLA_INFO_KIND && RTA_PAYLOAD(a) < sizeof(link->kind))
			memcpy(link->kind, RTA_DATA(a), RTA_PAYLOAD(a));
		if (a->rta_type == IFLA_INFO_DATA && strcmp(link->kind, "tun") == 0) /* the kind comes first */
			read_tun(link, a);
		if (a->rta_type == IFLA_INFO_DATA && strcmp(link->kind, "bridge") == 0)
			read_bridge(a, &link->vlan_filtering, &vid);
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
	if (attribute->rta_type == IFLA_IFALIAS && size < sizeof(link->alias))
		memcpy(link->alias, RTA_DATA(attribute), size);
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

int take_link(void *context, uint32_t tag, const struct nlmsghdr *message)
{
	struct vn_link *links = context;
	int error = 0, rc = 0;

	if (message->nlmsg_type == RTM_NEWLINK)
		return read_link(&links[tag], message);
	if (message->nlmsg_type == NLMSG_ERROR)
		rc = nl_error(message, &error);
	return rc < 0 || error == 0 || error == -ENODEV ? rc : error;
}

void put_lookup(struct netlink *nl, const struct vn_link *link, uint32_t tag)
{
	struct ifinfomsg body = { .ifi_family = AF_UNSPEC, .ifi_index = link->ifindex };
	struct nlmsghdr *message = nl_begin(nl, RTM_GETLINK, 0, tag, &body, sizeof(body));
	uint32_t mask = RTEXT_FILTER_SKIP_STATS;

	if (link->ifindex == 0)
		nl_attr(message, IFLA_IFNAME, link->name, strlen(link->name) + 1);
	nl_attr(message, IFLA_EXT_MASK, &mask, sizeof(mask));
	nl_end(nl, message);
}

static int ask_by_name(int fd, const char *name, unsigned long request, struct ifreq *answer)
{
	memset(&answer->ifr_ifru, 0, sizeof(answer->ifr_ifru));
	memcpy(answer->ifr_name, name, VN_IFNAMSIZ);
	return ioctl_retry(fd, request, answer) < 0 ? -errno : 0;
}

int look_up_parent(int fd, struct vn_nic *nic)
{
	struct ifreq answer;
	int rc = ask_by_name(fd, nic->parent, SIOCGIFINDEX, &answer);

	if (rc == 0)
		nic->parent_index = answer.ifr_ifindex;
	if (rc == 0)
		rc = ask_by_name(fd, nic->parent, SIOCGIFMTU, &answer);
	if (rc == 0)
		nic->mtu = (uint32_t)answer.ifr_mtu;
	return rc;
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

uint32_t count_ports(int fd, const char *name)
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

int look_up(int fd, struct vn_bridge *bridge, bool joins)
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

struct asked {
	struct vn_bridge *bridge;
	uint32_t filtering;
	int error;
};

static int take_vlans(void *context, uint32_t tag, const struct nlmsghdr *message)
{
	struct asked *asked = context;
	const struct rtattr *a, *b;
	const char *data, *info;
	size_t left, rest;

	(void)tag;
	if (message->nlmsg_type == NLMSG_ERROR)
		return nl_error(message, &asked->error);
	if (message->nlmsg_type != RTM_NEWLINK)
		return 0;
	data = link_attrs(message, &left);
	if (!data)
		return -EBADMSG;
	while ((a = next_attr(&data, &left))) {
		info = RTA_DATA(a);
		rest = RTA_PAYLOAD(a);
		while (a->rta_type == IFLA_LINKINFO && (b = next_attr(&info, &rest)))
			if (b->rta_type == IFLA_INFO_DATA)
				read_bridge(b, &asked->filtering, &asked->bridge->default_vid);
	}
	return 1;
}

int ask_vlans(struct netlink *nl, struct vn_bridge *bridge, uint32_t *call)
{
	struct ifinfomsg body = { .ifi_family = AF_UNSPEC, .ifi_index = (int)bridge->ifindex };
	struct nlmsghdr *message = nl_begin(nl, RTM_GETLINK, 0, 0, &body, sizeof(body));
	struct asked asked = { .bridge = bridge };
	uint32_t mask = RTEXT_FILTER_SKIP_STATS;
	int rc;

	bridge->default_vid = 0;
	nl_attr(message, IFLA_EXT_MASK, &mask, sizeof(mask));
	nl_end(nl, message);
	rc = nl_exchange(nl, take_vlans, &asked, call);
	if (rc < 0)
		return rc;
	*call = asked.error ? VN_CALL_RTM_GETLINK : VN_CALL_IFLA_BR_VLAN_FILTERING;
	if (asked.error)
		return asked.error;
	return asked.filtering ? 0 : -EOPNOTSUPP;
}
