/* vhost-net: one fd of it, opened and proven, or tried on a TAP and thrown away. */

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/stat.h>

#include <linux/vhost.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>

#include "calls.h"
#include "vhost.h"

enum {
	RING_ENTRIES = 256,
	RING_BYTES = 16384, /* descriptors 4096, available 518, used 2054 */
};

#define VHOST_NEEDED ((1ULL << VIRTIO_NET_F_MRG_RXBUF) | (1ULL << VIRTIO_F_VERSION_1))

/* O_NONBLOCK | O_NOCTTY: the path is the user's and may be a tty or a FIFO; QEMU sets O_NONBLOCK anyway. */
int open_vhost(const char *path, struct vn_act *act)
{
	int fd = open_retry(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

	return fd < 0 ? refused(act, VN_CALL_OPEN) : fd;
}

int prove_vhost(int fd, struct vn_act *act)
{
	uint64_t features = 0;
	struct stat status;

	if (fstat_retry(fd, &status) < 0)
		return refused(act, VN_CALL_FSTAT);
	errno = ENOTTY;
	if (!S_ISCHR(status.st_mode) || ioctl_retry(fd, VHOST_GET_FEATURES, &features) < 0)
		return refused(act, VN_CALL_VHOST_GET_FEATURES);
	errno = EPROTONOSUPPORT;
	if ((features & VHOST_NEEDED) != VHOST_NEEDED)
		return refused(act, VN_CALL_VHOST_GET_FEATURES);
	return 0;
}

static int vhost_call(int fd, unsigned long request, void *argument, struct vn_act *act, uint32_t call)
{
	return ioctl_retry(fd, request, argument) < 0 ? refused(act, call) : 0;
}

static int set_memory(int fd, uint64_t base, struct vn_act *act)
{
	union {
		struct vhost_memory table;
		char space[sizeof(struct vhost_memory) + sizeof(struct vhost_memory_region)];
	} memory = { .table = { .nregions = 1 } };

	memory.table.regions[0].memory_size = 2 * RING_BYTES;
	memory.table.regions[0].userspace_addr = base;
	return vhost_call(fd, VHOST_SET_MEM_TABLE, &memory, act, VN_CALL_VHOST_SET_MEM_TABLE);
}

static int set_ring(int fd, unsigned int index, uint64_t base, struct vn_act *act)
{
	struct vhost_vring_state size = { .index = index, .num = RING_ENTRIES };
	struct vhost_vring_state start = { .index = index };
	struct vhost_vring_addr address = {
		.index = index,
		.desc_user_addr = base,
		.avail_user_addr = base + 4096,
		.used_user_addr = base + 8192,
	};
	int rc = vhost_call(fd, VHOST_SET_VRING_NUM, &size, act, VN_CALL_VHOST_SET_VRING);

	if (rc == 0)
		rc = vhost_call(fd, VHOST_SET_VRING_BASE, &start, act, VN_CALL_VHOST_SET_VRING);
	if (rc == 0)
		rc = vhost_call(fd, VHOST_SET_VRING_ADDR, &address, act, VN_CALL_VHOST_SET_VRING);
	return rc;
}

/* Bind the TAP to a ring and let it go again. A TAP answers 0, anything else ENOTSOCK. */
static int bind_backend(int fd, unsigned int index, int tap, struct vn_act *act)
{
	struct vhost_vring_file backend = { .index = index, .fd = tap };
	int rc = vhost_call(fd, VHOST_NET_SET_BACKEND, &backend, act, VN_CALL_VHOST_NET_SET_BACKEND);

	backend.fd = -1;
	if (rc == 0)
		rc = vhost_call(fd, VHOST_NET_SET_BACKEND, &backend, act, VN_CALL_VHOST_NET_SET_BACKEND);
	return rc;
}

static int wire_up(int fd, char *memory, int tap, struct vn_act *act)
{
	uint64_t features = VHOST_NEEDED, base = (uint64_t)(uintptr_t)memory;
	int rc = vhost_call(fd, VHOST_SET_OWNER, NULL, act, VN_CALL_VHOST_SET_OWNER);

	if (rc == 0)
		rc = vhost_call(fd, VHOST_SET_FEATURES, &features, act, VN_CALL_VHOST_SET_FEATURES);
	if (rc == 0)
		rc = set_memory(fd, base, act);
	for (unsigned int index = 0; index < 2 && rc == 0; index++)
		rc = set_ring(fd, index, base + index * RING_BYTES, act);
	for (unsigned int index = 0; index < 2 && rc == 0; index++)
		rc = bind_backend(fd, index, tap, act);
	return rc;
}

int try_vhost(const char *path, int tap, struct vn_act *act)
{
	int rc, fd = open_vhost(path, act);
	char *memory = MAP_FAILED;

	if (fd < 0)
		return fd;
	rc = prove_vhost(fd, act);
	if (rc == 0)
		memory = mmap(NULL, 2 * RING_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (rc == 0)
		rc = memory == MAP_FAILED ? refused(act, VN_CALL_MMAP) : wire_up(fd, memory, tap, act);
	close(fd); /* before its memory goes */
	if (memory != MAP_FAILED)
		munmap(memory, 2 * RING_BYTES);
	return rc;
}
