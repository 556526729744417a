/* Traffic control: what holds a NIC to its bandwidth. Only written here; the loop sends. */

#ifndef VN_TC_H
#define VN_TC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core.h"
#include "netlink.h"

/* The row has numbers that belong together; or none. */
bool sound_bandwidth(const struct vn_nic *nic);

/* How many messages put_bandwidth() writes, and the most bytes they take. */
uint32_t bandwidth_messages(const struct vn_nic *nic);
size_t bandwidth_room(const struct vn_nic *nic);

void put_bandwidth(struct netlink *nl, const struct vn_nic *nic, uint32_t tag);

/* Which of them the kernel answers to. */
uint32_t bandwidth_call(const struct nlmsghdr *message);

#endif
