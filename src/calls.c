/* System calls that are made once more where a signal came in between, and a TAP's MAC. */

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <linux/if.h>
#include <linux/if_arp.h>
#include <linux/if_ether.h>
#include <linux/sockios.h>

#include "calls.h"

enum { MAC_TRIES = 3 };

int refused(struct vn_act *act, uint32_t call)
{
	act->call = call;
	return -errno;
}

int open_retry(const char *path, int flags)
{
	int fd, tries = EINTR_TRIES;

	do
		fd = open(path, flags);
	while (fd < 0 && errno == EINTR && tries-- > 0);
	return fd;
}

int ioctl_retry(int fd, unsigned long request, void *argument)
{
	int rc, tries = EINTR_TRIES;

	do
		rc = ioctl(fd, request, argument);
	while (rc < 0 && errno == EINTR && tries-- > 0);
	return rc;
}

int mknod_retry(const char *path, dev_t number)
{
	int rc, tries = EINTR_TRIES;

	do
		rc = mknod(path, S_IFCHR | S_IRUSR | S_IWUSR, number);
	while (rc < 0 && errno == EINTR && tries-- > 0);
	return rc;
}

int fstat_retry(int fd, struct stat *status)
{
	int rc, tries = EINTR_TRIES;

	do
		rc = fstat(fd, status);
	while (rc < 0 && errno == EINTR && tries-- > 0);
	return rc;
}

/* The system call, and not what glibc has of it since 2.25: all else that we call is older. */
int get_random(void *to, size_t size, unsigned int flags)
{
	return syscall(SYS_getrandom, to, size, flags) == (long)size ? 0 : -1;
}

int get_mac(int tap, uint8_t *mac)
{
	struct ifreq request = { 0 };

	if (ioctl_retry(tap, SIOCGIFHWADDR, &request) < 0)
		return -errno;
	memcpy(mac, request.ifr_hwaddr.sa_data, ETH_ALEN);
	return 0;
}

int set_mac(int tap, const uint8_t *mac)
{
	struct ifreq request = { .ifr_hwaddr.sa_family = ARPHRD_ETHER };

	memcpy(request.ifr_hwaddr.sa_data, mac, ETH_ALEN);
	return ioctl_retry(tap, SIOCSIFHWADDR, &request) < 0 ? -errno : 0;
}

int keep_mac(const struct vn_nic *nic, struct vn_act *act)
{
	for (int tries = MAC_TRIES; tries > 0; tries--) {
		uint8_t mac[ETH_ALEN];
		int rc = get_mac(nic->tap_fds[0], mac);

		act->call = VN_CALL_SIOCGIFHWADDR;
		if (rc < 0 || memcmp(mac, nic->mac, ETH_ALEN) == 0)
			return rc;
		act->call = VN_CALL_SIOCSIFHWADDR;
		rc = set_mac(nic->tap_fds[0], nic->mac);
		if (rc < 0)
			return rc;
	}
	return 0; /* whoever wants it so much */
}
