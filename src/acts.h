/* One function an act. Those on rtnetlink only write their message; the loop sends. */

#ifndef VN_ACTS_H
#define VN_ACTS_H

#include <stdbool.h>
#include <stdint.h>

#include "core.h"
#include "netlink.h"

/* In the place of an errno of what is not done yet: a message; or an act, and then how many answers it waits for. */
enum { UNANSWERED = 1 };

struct run {
	struct vn_nic *nics;
	struct vn_act *acts;
	struct vn_bridge *bridges;
	bool keep;
	uint32_t first; /* acts[first..next) wait for the next flush */
	uint32_t next;
	struct netlink nl;
};

/* What there is of a row. Until the run begins, check() keeps it in vn_nic.failed, which nobody needs before. */
enum { THERE = 1, VHOST = 2, HELD = 4, GONE = 8 };

struct act_kind {
	int (*act)(struct run *run, struct vn_nic *nic, struct vn_act *act);
	uint32_t batch; /* so many are put together, and done by the next flush(); 0: at once */
	uint32_t needs; /* what there must be of its row, */
	uint32_t bars;	/* what there must not be, */
	uint32_t makes; /* and what there is afterwards */
};

extern const struct act_kind ACTS[VN_ACTS];

#endif
