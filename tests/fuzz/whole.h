/* The whole C core as one unit: what is static in its rooms is in reach, and what they call can be replaced. */

#include "calls.c"
#include "netlink.c"
#include "links.c"
#include "removal.c"
#include "tc.c"
#include "vhost.c"
#include "acts.c"
#include "_vhostnet.c"
