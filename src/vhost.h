/* vhost-net: one fd of it, opened and proven, or tried on a TAP and thrown away. */

#ifndef VN_VHOST_H
#define VN_VHOST_H

#include "core.h"

/* The fd, or -errno. */
int open_vhost(const char *path, struct vn_act *act);

/* Proof that it is vhost-net, without ever owning it: a second VHOST_SET_OWNER, QEMU's, would be EBUSY. */
int prove_vhost(int fd, struct vn_act *act);

/* That it takes this TAP: by an fd of its own, which nobody else gets. */
int try_vhost(const char *path, int tap, struct vn_act *act);

#endif
