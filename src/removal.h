/* Taking NICs away: their links in one round, by the group, and their fds side by side. */

#ifndef VN_REMOVAL_H
#define VN_REMOVAL_H

#include <stdbool.h>
#include <stdint.h>

#include <sys/stat.h>

#include "core.h"
#include "netlink.h"

enum { DELETE_BATCH = 128 }; /* links of one group: RTNL is held until the last one is gone */

/* One NIC that is to go. */
struct doomed {
	struct vn_nic *nic;
	uint32_t call;
	int error; /* why its link cannot be deleted */
	bool gone; /* it has no link any more */
};

/*
 * Close the fds of those without an error. Each of vhost-net's, and the last of a TAP that still has its link, waits
 * for a grace period of 20 ms; those who wait at the same time share one.
 */
void close_fds(struct doomed *doomed, uint32_t n);
int netns_of(int fd, unsigned long request, struct stat *status);

/*
 * Proof that the ifindex is our TAP's, in this namespace, by what holds it, or our macvtap's, by its mark. *here is
 * NULL for what was made just now.
 */
int claim(struct netlink *nl, struct doomed *d, const struct stat *here);

/*
 * Delete the links of at most DELETE_BATCH NICs. Those that have no error afterwards are gone; their fds are dead and
 * still open. Nothing else has been touched.
 */
void delete_links(struct netlink *nl, struct doomed *doomed, uint32_t n, bool held);

#endif
