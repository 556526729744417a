/* System calls that are made once more where a signal came in between, and a TAP's MAC. */

#ifndef VN_CALLS_H
#define VN_CALLS_H

#include <stddef.h>
#include <stdint.h>

#include <sys/stat.h>

#include "core.h"

enum { EINTR_TRIES = 16 };

int refused(struct vn_act *act, uint32_t call);
int open_retry(const char *path, int flags);
int ioctl_retry(int fd, unsigned long request, void *argument);
int mknod_retry(const char *path, dev_t number); /* a character device, and ours alone */
int fstat_retry(int fd, struct stat *status);
int get_random(void *to, size_t size, unsigned int flags); /* at most 256 octets: those come whole */

/* By the fd: no name that could be another link's by now, and no need to be in its network namespace. */
int get_mac(int tap, uint8_t *mac);
int set_mac(int tap, const uint8_t *mac);

/* The MAC that LINK gave a new NIC, put right where another was set: udev does that, once, if it looked before us. */
int keep_mac(const struct vn_nic *nic, struct vn_act *act);

#endif
