/*
 * Preloaded into a test: counts the kernel calls that one thread makes, and has the n-th fail, kill the process, or
 * bring a netlink answer that is not what the kernel said. Everything else goes through.
 *
 * Only what vhostnet calls is counted: devices under /dev and their nodes, sockets, ioctls, netlink, the self-test's
 * mapping, fds and threads. A close() that is to fail closes all the same, as Linux does.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <linux/netlink.h>

enum {
	OPEN,
	SOCKET,
	BIND,
	GETSOCKNAME,
	IOCTL,
	SENDTO,
	RECVMSG,
	FSTAT,
	STAT,
	MMAP,
	CLOSE,
	GETRLIMIT,
	THREAD,
	SETSOCKOPT,
	MKNOD,
	UNLINK,
	CONNECT
};
enum { FAIL, KILL, TAMPER };
enum { SHORT, TRUNCATED, OTHER_SEQ, OTHER_PORT, FOREIGN, GARBAGE, POSITIVE, LONG, TWICE, SWAPPED };
enum { MOST = 16384, RING_BYTES = 2 * 16384 };

#define NODE "/dev/.vhostnet-tap"
#define EXPORT __attribute__((visibility("default")))
#define REAL(name) ((typeof(&name))real(#name))

struct fault {
	uint32_t index; /* of the call, from 0 */
	uint32_t kind;
	int32_t value; /* an errno, or how to tamper */
};

struct call {
	uint32_t what;
	uint32_t detail; /* of an ioctl the request */
};

static pthread_t owner;
static volatile bool armed;
static uint32_t count, n_faults;
static struct fault faults[4];
static struct call calls[MOST];

static struct {
	bool full;
	ssize_t length;
	char data[65536];
} kept; /* a datagram that comes later than it was received */

static void *real(const char *name)
{
	return dlsym(RTLD_NEXT, name);
}

EXPORT void shim_arm(const struct fault *table, uint32_t n)
{
	owner = pthread_self();
	count = 0;
	n_faults = n;
	kept.full = false;
	memcpy(faults, table, n * sizeof(*table));
	armed = true;
}

/* How many calls there were since; *table is what they were. */
EXPORT uint32_t shim_disarm(const struct call **table)
{
	armed = false;
	*table = calls;
	return count;
}

static const struct fault *next(uint32_t what, unsigned long detail)
{
	const struct fault *found = NULL;

	if (!armed || !pthread_equal(owner, pthread_self()) || count == MOST)
		return NULL;
	for (uint32_t i = 0; i < n_faults; i++)
		if (faults[i].index == count)
			found = &faults[i];
	calls[count++] = (struct call){ what, (uint32_t)detail };
	if (found && found->kind == KILL)
		raise(SIGKILL);
	return found;
}

/* Whether the call is to fail; errno says how. */
static bool fails(uint32_t what, unsigned long detail)
{
	const struct fault *fault = next(what, detail);

	if (!fault || fault->kind != FAIL)
		return false;
	errno = fault->value;
	return true;
}

/* ---- the calls ------------------------------------------------------------------------------------------ */

static int open_by(const char *name, const char *path, int flags, va_list more)
{
	mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;

	if (strncmp(path, "/dev/", 5) == 0 && fails(OPEN, 0))
		return -1;
	return ((int (*)(const char *, int, ...))real(name))(path, flags, mode);
}

#define OPENS(name)                                                                                                    \
	EXPORT int name(const char *path, int flags, ...)                                                              \
	{                                                                                                              \
		va_list more;                                                                                          \
		int fd;                                                                                                \
                                                                                                                       \
		va_start(more, flags);                                                                                 \
		fd = open_by(#name, path, flags, more);                                                                \
		va_end(more);                                                                                          \
		return fd;                                                                                             \
	}
OPENS(open)
OPENS(open64)

/* What open() becomes with _FORTIFY_SOURCE, where the compiler does not know the flags. */
int __open_2(const char *path, int flags);

EXPORT int __open_2(const char *path, int flags)
{
	if (strncmp(path, "/dev/", 5) == 0 && fails(OPEN, 0))
		return -1;
	return REAL(__open_2)(path, flags);
}

EXPORT int ioctl(int fd, unsigned long request, ...)
{
	va_list more;
	void *argument;

	va_start(more, request);
	argument = va_arg(more, void *);
	va_end(more);
	return fails(IOCTL, request) ? -1 : ((int (*)(int, unsigned long, ...))real("ioctl"))(fd, request, argument);
}

EXPORT int socket(int family, int type, int protocol)
{
	return fails(SOCKET, 0) ? -1 : REAL(socket)(family, type, protocol);
}

EXPORT int bind(int fd, const struct sockaddr *address, socklen_t size)
{
	return fails(BIND, 0) ? -1 : REAL(bind)(fd, address, size);
}

EXPORT int getsockname(int fd, struct sockaddr *address, socklen_t *size)
{
	return fails(GETSOCKNAME, 0) ? -1 : REAL(getsockname)(fd, address, size);
}

EXPORT int setsockopt(int fd, int level, int name, const void *value, socklen_t size)
{
	return fails(SETSOCKOPT, 0) ? -1 : REAL(setsockopt)(fd, level, name, value, size);
}

EXPORT ssize_t sendto(int fd, const void *data, size_t length, int flags, const struct sockaddr *to, socklen_t size)
{
	return fails(SENDTO, 0) ? -1 : REAL(sendto)(fd, data, length, flags, to, size);
}

/* What a stream, such as Open vSwitch's database, is spoken to by. */
EXPORT int connect(int fd, const struct sockaddr *address, socklen_t size)
{
	return fails(CONNECT, 0) ? -1 : REAL(connect)(fd, address, size);
}

EXPORT ssize_t send(int fd, const void *data, size_t length, int flags)
{
	return fails(SENDTO, 0) ? -1 : REAL(send)(fd, data, length, flags);
}

EXPORT ssize_t recv(int fd, void *data, size_t length, int flags)
{
	return fails(RECVMSG, 0) ? -1 : REAL(recv)(fd, data, length, flags);
}

#define STATS(name, kind)                                                                                              \
	EXPORT int name(int fd, struct kind *status)                                                                   \
	{                                                                                                              \
		return fails(FSTAT, 0) ? -1 : REAL(name)(fd, status);                                                  \
	}
STATS(fstat, stat)
STATS(fstat64, stat64)

#define PATH_STATS(name, kind)                                                                                         \
	EXPORT int name(const char *path, struct kind *status)                                                         \
	{                                                                                                              \
		if (strcmp(path, "/proc/self/fd") == 0 && fails(STAT, 0))                                              \
			return -1;                                                                                     \
		return REAL(name)(path, status);                                                                       \
	}
PATH_STATS(stat, stat)
PATH_STATS(stat64, stat64)

#define MAPS(name, offset_t)                                                                                           \
	EXPORT void *name(void *at, size_t length, int access, int flags, int fd, offset_t offset)                     \
	{                                                                                                              \
		if (length == RING_BYTES && (flags & MAP_ANONYMOUS) && fails(MMAP, 0))                                 \
			return MAP_FAILED;                                                                             \
		return REAL(name)(at, length, access, flags, fd, offset);                                              \
	}
MAPS(mmap, off_t)
MAPS(mmap64, off64_t)

EXPORT int getrlimit(__rlimit_resource_t resource, struct rlimit *limit)
{
	return resource == RLIMIT_NOFILE && fails(GETRLIMIT, 0) ? -1 : REAL(getrlimit)(resource, limit);
}

EXPORT int getrlimit64(__rlimit_resource_t resource, struct rlimit64 *limit)
{
	return resource == RLIMIT_NOFILE && fails(GETRLIMIT, 0) ? -1 : REAL(getrlimit64)(resource, limit);
}

EXPORT int close(int fd)
{
	bool fail = fails(CLOSE, 0);
	int code = errno, rc = REAL(close)(fd);

	if (!fail)
		return rc;
	errno = code;
	return -1;
}

EXPORT int mknod(const char *path, mode_t mode, dev_t number)
{
	return strncmp(path, NODE, strlen(NODE)) == 0 && fails(MKNOD, 0) ? -1 : REAL(mknod)(path, mode, number);
}

/* One that is to fail removes it all the same: nobody could take it away any more. */
EXPORT int unlink(const char *path)
{
	bool fail = strncmp(path, NODE, strlen(NODE)) == 0 && fails(UNLINK, 0);
	int code = errno, rc = REAL(unlink)(path);

	if (!fail)
		return rc;
	errno = code;
	return -1;
}

EXPORT int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
	return fails(THREAD, 0) ? errno : REAL(pthread_create)(thread, attributes, start, argument);
}

/* ---- answers that are not what the kernel said ---------------------------------------------------------- */

static ssize_t give_kept(struct msghdr *header)
{
	struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };

	kept.full = false;
	header->msg_namelen = sizeof(kernel);
	memcpy(header->msg_name, &kernel, sizeof(kernel));
	memcpy(header->msg_iov->iov_base, kept.data, (size_t)kept.length);
	return kept.length;
}

static void keep(const struct msghdr *header, ssize_t length)
{
	kept.full = true;
	kept.length = length;
	memcpy(kept.data, header->msg_iov->iov_base, (size_t)length);
}

static ssize_t tampered(int fd, struct msghdr *header, int flags, ssize_t length, int how)
{
	struct nlmsghdr *message = header->msg_iov->iov_base;

	switch (how) {
	case SHORT:
		return length / 2;
	case TRUNCATED:
		header->msg_flags |= MSG_TRUNC;
		break;
	case OTHER_SEQ:
		message->nlmsg_seq += 1000;
		break;
	case OTHER_PORT:
		message->nlmsg_pid += 1;
		break;
	case FOREIGN:
		((struct sockaddr_nl *)header->msg_name)->nl_pid = 7;
		break;
	case GARBAGE:
		memset(message, 0xa5, (size_t)length);
		break;
	case POSITIVE:
		message->nlmsg_type = NLMSG_ERROR;
		((struct nlmsgerr *)NLMSG_DATA(message))->error = 1;
		break;
	case LONG:
		message->nlmsg_len += 4096;
		break;
	case TWICE:
		keep(header, length);
		break;
	case SWAPPED:
		keep(header, length);
		length = REAL(recvmsg)(fd, header, flags);
		return length > 0 ? length : give_kept(header);
	}
	return length;
}

EXPORT ssize_t recvmsg(int fd, struct msghdr *header, int flags)
{
	const struct fault *fault = next(RECVMSG, 0);
	ssize_t length;

	if (fault && fault->kind == FAIL) {
		errno = fault->value;
		return -1;
	}
	length = kept.full && armed ? give_kept(header) : REAL(recvmsg)(fd, header, flags);
	return fault && length > 0 ? tampered(fd, header, flags, length, fault->value) : length;
}
