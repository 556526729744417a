/* What the kernel says of links: one by its name, and the bridges that NICs join. */

#ifndef VN_LINKS_H
#define VN_LINKS_H

#include <stdbool.h>
#include <stdint.h>

#include "core.h"
#include "netlink.h"

int take_link(void *context, uint32_t tag, const struct nlmsghdr *message);
/* By its ifindex, or where that is 0 by its name. */
void put_lookup(struct netlink *nl, const struct vn_link *link, uint32_t tag);

/*
 * How many ports a bridge has, by brctl's own ioctl: nothing younger gives that in one call. Not to be asked of any
 * other link, to which it would mean something else. 0 where a kernel has it no more.
 */
uint32_t count_ports(int fd, const char *name);

/*
 * By ioctls: asked by RTM_GETLINK a bridge recites all of itself, which takes twice as long. Where no NIC joins, all of
 * them held and its ports already, there is no need to know what it is and how full.
 */
int look_up(int fd, struct vn_bridge *bridge, bool joins);

/* The link that a macvtap is to be on, whose MTU it will have. */
int look_up_parent(int fd, struct vn_nic *nic);

/* The VLAN that a new port of it is in. EOPNOTSUPP where it does not heed VLANs; *call says what refused. */
int ask_vlans(struct netlink *nl, struct vn_bridge *bridge, uint32_t *call);

#endif
