/*
 * What a wheel for glibc 2.17 has in the place of libc_nonshared.a: until 2.33 stat() and its like were no functions of
 * libc.so but static ones that ask it for their number. By those of them that take a directory the system calls are the
 * ones that a build for a new glibc makes (docs/security.md), and these are marked for branch protection, as ours are:
 * the linker marks what it links only if everything in it is.
 */

#define _GNU_SOURCE

#include <fcntl.h>

#include <sys/stat.h>

enum { MKNOD_VERSION = 0 };
#ifdef __aarch64__
enum { STAT_VERSION = 0 };
#else
enum { STAT_VERSION = 1 };
#endif

int __fxstatat(int version, int directory, const char *path, struct stat *status, int flags);
int __xmknodat(int version, int directory, const char *path, mode_t mode, dev_t *number);

int stat(const char *path, struct stat *status)
{
	return __fxstatat(STAT_VERSION, AT_FDCWD, path, status, 0);
}

int fstat(int fd, struct stat *status)
{
	return __fxstatat(STAT_VERSION, fd, "", status, AT_EMPTY_PATH);
}

int mknod(const char *path, mode_t mode, dev_t number)
{
	return __xmknodat(MKNOD_VERSION, AT_FDCWD, path, mode, &number);
}
