/*
 * Any Program, malformed ones too, on a kernel that may say anything. Every call the C core makes is answered here from
 * the input: with what a kernel would say, with an errno, or with rubbish. Checked is what holds whatever is answered:
 *
 * - a malformed Program is -EINVAL before the first call;
 * - no call is made on an fd that is not open, and none is closed twice;
 * - afterwards exactly the fds that the rows hold are open, and a NIC that failed, and is not held, holds none;
 * - without keep it is all or none;
 * - what is sent is well-formed netlink, and everything ends.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <linux/ethtool.h>
#include <linux/if.h>
#include <linux/if_arp.h>
#include <linux/if_bridge.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/random.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <linux/vhost.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>

#define REQUIRE(fact) ((fact) ? (void)0 : abort())

enum { FDS = 65536, LINKS = 64, SENT = 64, ROWS = 6, PORT = 4711 };

/* ---- the input ----------------------------------------------------------------------------------------- */

static const uint8_t *input;
static size_t left;

/* 0 when there is no more: then everything succeeds. */
static uint8_t byte(void)
{
	return left > 0 ? left--, *input++ : 0;
}

static uint32_t word(void)
{
	uint32_t high = byte();

	return high << 8 | byte();
}

/* Rubbish, as long as there is any. */
static void rubbish(void *to, size_t size)
{
	for (size_t i = 0; i < size; i++)
		((uint8_t *)to)[i] = byte();
}

/* ---- the kernel: fds ----------------------------------------------------------------------------------- */

static enum { NEVER, OPEN, CLOSED } state[FDS];
static char names[FDS][IFNAMSIZ]; /* of the TAP it is a queue of */
static int next_fd_number, calls;

static int fd_is_open(int fd)
{
	return fd >= 0 && fd < FDS && state[fd] == OPEN;
}

static int new_fd(void)
{
	REQUIRE(next_fd_number < FDS);
	state[next_fd_number] = OPEN;
	return next_fd_number++;
}

/* One call in eight or so is refused, where the input has it. */
static bool refuses(void)
{
	static const int errnos[] = { EINTR,  EPERM,   EBUSY,  EINVAL, ENOMEM, EMFILE, ENODEV,	   EBADFD,
				      EAGAIN, ENOBUFS, ENOTTY, EIO,    E2BIG,  EXFULL, EOPNOTSUPP, ENOENT };
	uint8_t choice = byte();

	calls++;
	errno = errnos[choice % 16];
	return choice >= 224;
}

static int fake_open(const char *path, int flags)
{
	REQUIRE(path && flags & O_CLOEXEC);
	return refuses() ? -1 : new_fd();
}

static int uevents = -1; /* the socket that hears of new devices */
static int made_last;	 /* the ifindex of the macvtap that was */

static int fake_socket(int family, int type, int protocol)
{
	int fd;

	REQUIRE(family == AF_NETLINK && type & SOCK_CLOEXEC);
	REQUIRE(protocol == NETLINK_ROUTE || protocol == NETLINK_KOBJECT_UEVENT);
	if (refuses())
		return -1;
	fd = new_fd();
	if (protocol == NETLINK_KOBJECT_UEVENT)
		uevents = fd;
	return fd;
}

/* As Linux has it, the fd is closed whatever close() answers. */
static int fake_close(int fd)
{
	REQUIRE(fd_is_open(fd));
	state[fd] = CLOSED;
	return refuses() ? -1 : 0;
}

static int fake_bind(int fd, const void *address, socklen_t size)
{
	REQUIRE(fd_is_open(fd) && address && size == sizeof(struct sockaddr_nl));
	return refuses() ? -1 : 0;
}

static int fake_getsockname(int fd, void *address, socklen_t *size)
{
	REQUIRE(fd_is_open(fd) && *size == sizeof(struct sockaddr_nl));
	((struct sockaddr_nl *)address)->nl_pid = PORT;
	return refuses() ? -1 : 0;
}

static int fake_setsockopt(int fd, int level, int name, const void *value, socklen_t size)
{
	REQUIRE(fd_is_open(fd) && level == SOL_NETLINK && name == NETLINK_EXT_ACK && value && size == sizeof(int));
	return refuses() ? -1 : 0;
}

static int fake_fstat(int fd, struct stat *status)
{
	REQUIRE(fd_is_open(fd));
	memset(status, 0, sizeof(*status));
	status->st_mode = byte() < 240 ? S_IFCHR : S_IFIFO;
	status->st_ino = byte() < 240 ? 1 : 2;
	return refuses() ? -1 : 0;
}

static int fake_stat(const char *path, struct stat *status)
{
	REQUIRE(strcmp(path, "/proc/self/fd") == 0);
	status->st_size = byte() < 64 ? 0 : byte();
	return refuses() ? -1 : 0;
}

static int nodes; /* that are in /dev */

static int fake_mknod(const char *path, mode_t mode, dev_t number)
{
	REQUIRE(strncmp(path, "/dev/.vhostnet-tap", 18) == 0 && mode == (S_IFCHR | 0600));
	(void)number;
	if (refuses())
		return -1;
	nodes++;
	return 0;
}

static int fake_unlink(const char *path)
{
	REQUIRE(strncmp(path, "/dev/.vhostnet-tap", 18) == 0 && nodes-- == 1);
	return refuses() ? -1 : 0;
}

/* ---- the kernel: links --------------------------------------------------------------------------------- */

static uint32_t groups[LINKS]; /* by ifindex; 0 is none */
static bool deleted[LINKS];
static uint8_t macs[LINKS][6];

static int ifindex_of(const char *name)
{
	return 1 + (name[0] + name[1] * 7) % (LINKS - 1);
}

/* Each device has the MAC of its ifindex until it is given another; now and then somebody else gives it one. */
static int hardware_address(int fd, struct ifreq *request)
{
	if (byte() >= 252)
		macs[ifindex_of(names[fd])][1] = byte();
	memcpy(request->ifr_hwaddr.sa_data, macs[ifindex_of(names[fd])], 6);
	return 0;
}

static int set_hardware_address(int fd, const struct ifreq *request)
{
	REQUIRE(request->ifr_hwaddr.sa_family == ARPHRD_ETHER);
	memcpy(macs[ifindex_of(names[fd])], request->ifr_hwaddr.sa_data, 6);
	return 0;
}

static int tun_name(int fd, struct ifreq *request)
{
	uint8_t choice = byte();

	errno = EBADFD;
	if (choice >= 248 || deleted[ifindex_of(names[fd])])
		return -1;
	memcpy(request->ifr_name, names[fd], IFNAMSIZ);
	request->ifr_flags = choice & 1 ? IFF_TAP | IFF_DETACH_QUEUE : IFF_TAP;
	if (choice >= 240)
		rubbish(request, sizeof(*request));
	return 0;
}

static int link_number(struct ifreq *request, unsigned long about)
{
	uint8_t choice = byte();

	if (about == SIOCGIFINDEX)
		request->ifr_ifindex = choice < 240 ? ifindex_of(request->ifr_name) : choice - 240;
	else
		request->ifr_mtu = choice < 128 ? 1500 : (int)word();
	return 0;
}

static int ethtool(struct ifreq *request)
{
	struct ethtool_drvinfo *info = (void *)request->ifr_data;

	if (info->cmd == ETHTOOL_SCOALESCE)
		return 0;
	REQUIRE(info->cmd == ETHTOOL_GDRVINFO);
	memcpy(info->driver, "bridge", sizeof("bridge"));
	if (byte() >= 240)
		rubbish(info->driver, sizeof(info->driver));
	return 0;
}

static int port_list(struct ifreq *request)
{
	unsigned long *arguments = (void *)request->ifr_data;
	int *ports = (int *)arguments[1];
	uint32_t taken = byte() < 240 ? 2 : 1019 + byte() % 5;

	REQUIRE(arguments[0] == BRCTL_GET_PORT_LIST && arguments[2] == 1024);
	for (uint32_t port = 1; port <= taken && port < 1024; port++)
		ports[port] = 1;
	return 0;
}

static int vhost_features(uint64_t *features)
{
	*features = 1ULL << VIRTIO_NET_F_MRG_RXBUF | 1ULL << VIRTIO_F_VERSION_1;
	if (byte() >= 240)
		rubbish(features, sizeof(*features));
	return 0;
}

static int fake_ioctl(int fd, unsigned long request, void *argument)
{
	REQUIRE(fd_is_open(fd));
	if (refuses())
		return -1;
	switch (request) {
	case TUNSETIFF:
		memcpy(names[fd], ((struct ifreq *)argument)->ifr_name, IFNAMSIZ);
		REQUIRE(memchr(names[fd], 0, IFNAMSIZ));
		deleted[ifindex_of(names[fd])] = false;
		return 0;
	case TUNGETIFF:
		return tun_name(fd, argument);
	case SIOCGIFHWADDR:
		return hardware_address(fd, argument);
	case SIOCSIFHWADDR:
		return set_hardware_address(fd, argument);
	case TUNGETFEATURES:
		rubbish(argument, sizeof(unsigned int));
		return 0;
	case SIOCGIFINDEX:
	case SIOCGIFMTU:
		return link_number(argument, request);
	case SIOCETHTOOL:
		return ethtool(argument);
	case SIOCDEVPRIVATE:
		return port_list(argument);
	case SIOCGSKNS:
	case TUNGETDEVNETNS:
		return new_fd();
	case VHOST_GET_FEATURES:
		return vhost_features(argument);
	case VHOST_NET_SET_BACKEND:
		REQUIRE(((struct vhost_vring_file *)argument)->fd == -1 ||
			fd_is_open(((struct vhost_vring_file *)argument)->fd));
		return 0;
	default:
		return 0;
	}
}

/* ---- the kernel: rtnetlink ------------------------------------------------------------------------------ */

static struct nlmsghdr asked[SENT]; /* and not answered yet */
static uint32_t asked_of[SENT];	    /* the ifindex each was about */
static uint32_t n_asked, n_answered;

static void take_group(const struct nlmsghdr *message, uint32_t group)
{
	const struct ifinfomsg *body = NLMSG_DATA(message);

	if (message->nlmsg_type == RTM_NEWLINK && body->ifi_index > 0 && body->ifi_index < LINKS)
		groups[body->ifi_index] = group;
	for (int i = 0; i < LINKS && message->nlmsg_type == RTM_DELLINK; i++)
		deleted[i] |= groups[i] == group;
}

static size_t head_of(const struct nlmsghdr *message)
{
	switch (message->nlmsg_type) {
	case RTM_NEWQDISC:
	case RTM_DELQDISC:
	case RTM_NEWTCLASS:
	case RTM_NEWTFILTER:
		return sizeof(struct tcmsg);
	case RTM_NEWNEIGH:
	case RTM_DELNEIGH:
		return sizeof(struct ndmsg);
	default:
		return sizeof(struct ifinfomsg);
	}
}

/* A message: its attributes fill it to the last byte. */
static void take_message(const struct nlmsghdr *message)
{
	size_t head = head_of(message);
	bool bridges = ((const struct ifinfomsg *)NLMSG_DATA(message))->ifi_family == AF_BRIDGE;
	bool links = head == sizeof(struct ifinfomsg) && message->nlmsg_type < RTM_NEWQDISC;
	const struct rtattr *a = (const struct rtattr *)((const char *)NLMSG_DATA(message) + NLMSG_ALIGN(head));
	int rest = (int)message->nlmsg_len - (int)NLMSG_LENGTH(head);
	uint32_t named = 0;

	REQUIRE(rest >= 0 && message->nlmsg_flags & NLM_F_REQUEST);
	for (; RTA_OK(a, rest); a = RTA_NEXT(a, rest))
		if (a->rta_type == IFLA_GROUP && links && !bridges)
			take_group(message, *(const uint32_t *)RTA_DATA(a));
		else if (a->rta_type == IFLA_IFNAME && message->nlmsg_type == RTM_GETLINK)
			named = (uint32_t)ifindex_of(RTA_DATA(a));
		else if (a->rta_type == IFLA_IFNAME && message->nlmsg_flags & NLM_F_EXCL)
			made_last = ((const struct ifinfomsg *)NLMSG_DATA(message))->ifi_index;
	REQUIRE(rest <= 0);
	REQUIRE(n_asked < SENT);
	asked_of[n_asked] = named ? named : (uint32_t)((const struct ifinfomsg *)NLMSG_DATA(message))->ifi_index;
	asked[n_asked++] = *message;
}

static ssize_t fake_sendto(int fd, const void *data, size_t size, int flags, const void *to, socklen_t to_size)
{
	const char *at = data, *end = at + size;

	REQUIRE(fd_is_open(fd) && size > 0 && flags == 0 && to && to_size == sizeof(struct sockaddr_nl));
	n_asked = n_answered = 0;
	for (; at < end; at += NLMSG_ALIGN(((const struct nlmsghdr *)at)->nlmsg_len)) {
		REQUIRE(end - at >= (ptrdiff_t)sizeof(struct nlmsghdr));
		take_message((const struct nlmsghdr *)at);
	}
	REQUIRE(at == end);
	if (refuses())
		return -1;
	return byte() < 250 ? (ssize_t)size : (ssize_t)size - 1;
}

static size_t put_answer(char *to, const struct nlmsghdr *to_what, uint16_t type, const void *body, size_t size)
{
	struct nlmsghdr *answer = (struct nlmsghdr *)to;

	*answer = (struct nlmsghdr){ .nlmsg_len = (uint32_t)NLMSG_LENGTH(size), .nlmsg_type = type };
	answer->nlmsg_seq = to_what->nlmsg_seq;
	answer->nlmsg_pid = PORT;
	memcpy(NLMSG_DATA(answer), body, size);
	return NLMSG_SPACE(size);
}

static size_t put_error(char *to, const struct nlmsghdr *to_what)
{
	struct {
		struct nlmsgerr head;
		struct rtattr words;
		char text[8]; /* and no NUL */
	} body = { .head = { .error = refuses() ? -errno : 0, .msg = *to_what },
		   .words = { sizeof(struct rtattr) + 7, NLMSGERR_ATTR_MSG },
		   .text = "the why" };
	uint8_t choice = byte();
	size_t size = put_answer(to, to_what, NLMSG_ERROR, &body, choice < 128 ? sizeof(body.head) : sizeof(body));

	if (choice >= 128)
		((struct nlmsghdr *)to)->nlmsg_flags = NLM_F_ACK_TLVS | (choice & 1 ? NLM_F_CAPPED : 0);
	return size;
}

static size_t put_link(char *to, const struct nlmsghdr *to_what, int ifindex, uint32_t group)
{
	struct {
		struct ifinfomsg head;
		struct rtattr address;
		uint8_t mac[8];
		struct rtattr group;
		uint32_t value;
		struct rtattr info, kind;
		char name[8];
		struct rtattr data, filtering;
		uint8_t on[4];
		struct rtattr pvid;
		uint16_t vid[2];
	} body = {
		.head = { .ifi_index = ifindex },
		.address = { sizeof(struct rtattr) + 6, IFLA_ADDRESS },
		.group = { sizeof(struct rtattr) + 4, IFLA_GROUP },
		.value = group,
		.info = { 5 * sizeof(struct rtattr) + 16, IFLA_LINKINFO },
		.kind = { sizeof(struct rtattr) + 7, IFLA_INFO_KIND },
		.name = "bridge",
		.data = { 3 * sizeof(struct rtattr) + 8, IFLA_INFO_DATA },
		.filtering = { sizeof(struct rtattr) + 1, IFLA_BR_VLAN_FILTERING },
		.on = { byte() < 224 },
		.pvid = { sizeof(struct rtattr) + 2, IFLA_BR_VLAN_DEFAULT_PVID },
		.vid = { byte() },
	};

	if (ifindex >= 0x10000000 || byte() >= 224) {
		memcpy(body.name, "macvtap", sizeof("macvtap"));
		body.kind.rta_len = sizeof(struct rtattr) + sizeof("macvtap");
	}
	memcpy(body.mac, macs[ifindex % LINKS], 6);
	return put_answer(to, to_what, RTM_NEWLINK, &body, sizeof(body));
}

static size_t put_listing(char *to, const struct nlmsghdr *to_what)
{
	uint8_t choice = byte();
	size_t size = 0;
	int done = 0;

	for (int i = 1; i < LINKS; i++)
		if (groups[i] && !deleted[i])
			size += put_link(to + size, to_what, i, groups[i]);
	if (choice >= 240) /* somebody else is in the group */
		size += put_link(to + size, to_what, 1000, groups[asked_of[0] % LINKS]);
	if (choice >= 192 && size > 0)
		((struct nlmsghdr *)to)->nlmsg_flags |= NLM_F_DUMP_INTR;
	return size + put_answer(to + size, to_what, NLMSG_DONE, &done, sizeof(done));
}

/* What a kernel would say to everything that was asked, or to some of it. */
static size_t put_answers(char *to)
{
	size_t size = 0;

	while (n_answered < n_asked) {
		const struct nlmsghdr *question = &asked[n_answered];
		int ifindex = (int)asked_of[n_answered++];

		if (question->nlmsg_type == RTM_GETLINK && question->nlmsg_flags & NLM_F_DUMP)
			size += put_listing(to + size, question);
		else if (question->nlmsg_type == RTM_GETLINK && byte() < 192)
			size += put_link(to + size, question, ifindex, 0);
		else
			size += put_error(to + size, question);
		if (byte() >= 224)
			break; /* the rest comes in another datagram */
	}
	return size;
}

/* Rubbish in place of an answer; now and then with a head that fits to what was asked. */
static size_t put_rubbish(char *to, size_t room)
{
	size_t size = byte() % 64;
	struct nlmsghdr *head = (struct nlmsghdr *)to;

	REQUIRE(size <= room);
	rubbish(to, size);
	if (size >= sizeof(*head) && n_asked > 0 && head->nlmsg_type & 1) {
		head->nlmsg_seq = asked[head->nlmsg_seq % n_asked].nlmsg_seq;
		head->nlmsg_pid = PORT;
		head->nlmsg_len = (uint32_t)size;
	}
	return size;
}

/* What the kernel says of the device that was made last, of another, or rubbish. */
static ssize_t put_uevent(struct msghdr *header)
{
	struct sockaddr_nl *from = header->msg_name;
	char *text = header->msg_iov->iov_base;
	size_t room = header->msg_iov->iov_len;
	uint8_t choice = byte();

	from->nl_pid = choice >= 252 ? 1 : 0;
	header->msg_flags = choice >= 248 && choice < 252 ? MSG_TRUNC : 0;
	errno = EAGAIN;
	if (choice >= 240 && choice < 248)
		return -1;
	if (choice >= 192 && left > 0) {
		size_t size = byte();

		rubbish(text, size < room ? size : room);
		return (ssize_t)(size < room ? size : room);
	}
	return snprintf(text, room, "add@/devices%cMAJOR=246%cMINOR=%u%cDEVNAME=tap%d%c", 0, 0, byte(), 0,
			choice < 128 ? made_last : choice, 0);
}

static ssize_t fake_recvmsg(int fd, struct msghdr *header, int flags)
{
	struct sockaddr_nl *from = header->msg_name;
	uint8_t choice;
	size_t size;

	REQUIRE(fd_is_open(fd) && flags & MSG_DONTWAIT);
	if (refuses())
		return -1;
	if (fd == uevents)
		return put_uevent(header);
	choice = byte();
	from->nl_pid = choice >= 252 ? 1 : 0;
	header->msg_flags = choice >= 248 && choice < 252 ? MSG_TRUNC : 0;
	if (choice >= 192 && left > 0)
		return (ssize_t)put_rubbish(header->msg_iov->iov_base, header->msg_iov->iov_len);
	size = put_answers(header->msg_iov->iov_base);
	REQUIRE(size <= header->msg_iov->iov_len);
	errno = EAGAIN;
	return size > 0 ? (ssize_t)size : -1;
}

/* ---- the kernel: the rest -------------------------------------------------------------------------------- */

static char memory[64 * 1024];
static int mapped, directories, entries, threads;

static void *fake_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
	REQUIRE(!at && size <= sizeof(memory) && protection && flags & MAP_ANONYMOUS && fd == -1 && offset == 0);
	if (refuses())
		return MAP_FAILED;
	mapped++;
	return memory;
}

static int fake_munmap(void *at, size_t size)
{
	REQUIRE(at == memory && size <= sizeof(memory) && mapped-- == 1);
	return 0;
}

static long fake_syscall(long number, void *to, size_t size, unsigned int flags)
{
	REQUIRE(number == SYS_getrandom);
	REQUIRE(flags == GRND_NONBLOCK || flags == 0);
	memset(to, 7, size);
	return refuses() ? -1 : (long)size;
}

static int fake_getrlimit(int what, struct rlimit *limit)
{
	REQUIRE(what == RLIMIT_NOFILE);
	limit->rlim_cur = byte() < 224 ? 1 << 20 : byte();
	return refuses() ? -1 : 0;
}

static DIR *fake_opendir(const char *path)
{
	REQUIRE(strcmp(path, "/proc/self/fd") == 0);
	if (refuses())
		return NULL;
	directories++;
	entries = byte();
	return (DIR *)memory;
}

static struct dirent *fake_readdir(DIR *directory)
{
	static struct dirent entry;

	REQUIRE(directory == (DIR *)memory && directories == 1);
	entry.d_name[0] = (char)(entries < 2 ? '.' : '0' + entries % 10);
	return entries-- > 0 ? &entry : NULL;
}

static int fake_closedir(DIR *directory)
{
	REQUIRE(directory == (DIR *)memory && directories-- == 1);
	return 0;
}

/* A thread that has run to its end before anybody else goes on: one of the orders there are. */
static int fake_pthread_create(pthread_t *thread, void *(*work)(void *), void *argument)
{
	*thread = 0;
	if (refuses())
		return EAGAIN;
	threads++;
	work(argument);
	return 0;
}

static int fake_pthread_join(pthread_t thread)
{
	REQUIRE(thread == 0 && threads-- > 0);
	return 0;
}

#define open(path, flags) fake_open(path, flags)
#define mknod(path, mode, number) fake_mknod(path, mode, number)
#define unlink(path) fake_unlink(path)
#define socket(family, type, protocol) fake_socket(family, type, protocol)
#define close(fd) fake_close(fd)
#define bind(fd, address, size) fake_bind(fd, address, size)
#define getsockname(fd, address, size) fake_getsockname(fd, address, size)
#define setsockopt(fd, level, name, value, size) fake_setsockopt(fd, level, name, value, size)
#define fstat(fd, status) fake_fstat(fd, status)
#define stat(path, status) fake_stat(path, status)
#define ioctl(fd, request, argument) fake_ioctl(fd, request, argument)
#define sendto(fd, data, size, flags, to, to_size) fake_sendto(fd, data, size, flags, to, to_size)
#define recvmsg(fd, header, flags) fake_recvmsg(fd, header, flags)
#define mmap(at, size, protection, flags, fd, offset) fake_mmap(at, size, protection, flags, fd, offset)
#define munmap(at, size) fake_munmap(at, size)
#define syscall(number, to, size, flags) fake_syscall(number, to, size, flags)
#define getrlimit(what, limit) fake_getrlimit(what, limit)
#define opendir(path) fake_opendir(path)
#define readdir(directory) fake_readdir(directory)
#define closedir(directory) fake_closedir(directory)
#define pthread_create(thread, attributes, work, argument) fake_pthread_create(thread, work, argument)
#define pthread_join(thread, result) fake_pthread_join(thread)
#define put_link core_put_link

#include "whole.h"

/* ---- a Program ------------------------------------------------------------------------------------------- */

/* A name that ends, or with luck one that does not. */
static void make_name(char *name, size_t size)
{
	uint8_t choice = byte();

	memset(name, choice >= 252 ? 'x' : 0, size);
	if (choice % 4)
		name[0] = (char)('a' + choice % 8);
}

static uint32_t make_queues(void)
{
	uint8_t choice = byte();

	return choice >= 252 ? (uint32_t[]){ 0, 257, UINT32_MAX, 256 }[choice - 252] : 1 + choice % 4;
}

/* The fds of a NIC that exists: open, and nobody else's. */
static void make_held(struct vn_nic *nic, uint32_t room)
{
	uint32_t taps = 1 + byte() % 4, vhosts = byte() % 4;

	nic->held = 1;
	nic->ifindex = byte() < 192 ? ifindex_of(nic->name) : byte();
	for (nic->n_tap = 0; nic->n_tap < taps && nic->n_tap < room; nic->n_tap++) {
		int fd = new_fd();

		memcpy(names[fd], nic->name, IFNAMSIZ);
		names[fd][IFNAMSIZ - 1] = 0;
		nic->tap_fds[nic->n_tap] = fd;
	}
	for (nic->n_vhost = 0; nic->n_vhost < vhosts && nic->n_vhost < room; nic->n_vhost++)
		nic->vhost_fds[nic->n_vhost] = new_fd();
}

/* Numbers that belong together, or with luck such that do not. */
static void make_bandwidth(struct vn_nic *nic)
{
	uint8_t choice = byte();

	if (choice & 1) {
		nic->rate = nic->ceil = choice & 4 ? 1ULL << 40 : 1000;
		nic->burst = nic->ceil_burst = nic->quantum = 1 + word();
	}
	if (choice & 2) {
		nic->police_rate = choice & 4 ? 1ULL << 40 : 1000;
		nic->police_burst = 1 + word();
	}
	if (choice >= 252)
		*(uint32_t *[]){ &nic->burst, &nic->ceil_burst, &nic->quantum, &nic->police_burst }[choice - 252] ^= 1;
}

/* One that is known by its mark alone. */
static void let_go(struct vn_nic *nic)
{
	while (nic->n_tap > 0)
		fake_close(nic->tap_fds[--nic->n_tap]);
	while (nic->n_vhost > 0)
		fake_close(nic->vhost_fds[--nic->n_vhost]);
}

/* What it is as a port; at most 8 VLANs, or far too many. */
static void make_port(struct vn_nic *nic)
{
	static struct vn_vlan vlans[VN_MAX_VLANS];
	uint8_t choice = byte();

	nic->isolated = choice & 1;
	nic->set_fdb = choice >> 1 & 1;
	nic->frames = choice;
	nic->adopted = byte() >= 192;
	nic->macvtap = byte() >= 192;
	nic->persist = byte() & 1;
	nic->owner = (int64_t)byte() - 2;
	nic->group = -1;
	make_bandwidth(nic);
	if (choice < 128)
		return;
	nic->n_vlans = choice >= 252 ? (uint32_t[]){ VN_MAX_VLANS, VN_MAX_VLANS + 1, UINT32_MAX, 1 }[choice - 252]
				     : choice % 8;
	nic->vlans = choice == 255 ? NULL : vlans;
	for (uint32_t i = 0; i < VN_MAX_VLANS; i++)
		vlans[i] = (struct vn_vlan){ .flags = (uint16_t)(i % 32), .vid = (uint16_t)(1 + i) };
	vlans[0] =
		(struct vn_vlan){ .flags = byte(), .vid = choice >= 250 ? (uint16_t)word() : (uint16_t)(1 + byte()) };
}

static void make_nic(struct vn_nic *nic, int32_t *fds, uint32_t n_bridges)
{
	uint32_t room;

	make_name(nic->name, sizeof(nic->name));
	make_name(nic->wish, sizeof(nic->wish));
	make_name(nic->alias, sizeof(nic->alias));
	nic->queues = make_queues();
	nic->tun_flags = byte() < 252 ? IFF_TAP | IFF_NO_PI : word();
	nic->tap_path = byte() < 252 ? "/dev/net/tun" : NULL;
	nic->vhost_path = "/dev/vhost-net";
	nic->bridge = (int32_t)(byte() % (n_bridges + 1)) - 1;
	if (byte() >= 252)
		nic->bridge = (int32_t)byte() - 128;
	nic->mtu = byte() < 128 ? 0 : word();
	nic->no_ipv6 = nic->up = byte() & 1;
	nic->tap_fds = fds;
	nic->vhost_fds = fds + VN_MAX_QUEUES;
	room = nic->queues < VN_MAX_QUEUES ? nic->queues : VN_MAX_QUEUES;
	make_port(nic);
	make_name(nic->parent, sizeof(nic->parent));
	nic->all_multicast = byte() & 1;
	nic->set_mac = (nic->up || nic->macvtap) && !nic->adopted;
	if (byte() & 1)
		make_held(nic, room);
	if (nic->held && nic->macvtap && byte() >= 128)
		let_go(nic);
	if (nic->held && byte() >= 252)
		nic->queues = nic->n_tap - 1;
}

static void make_act(struct vn_act *act, uint32_t n_nics)
{
	uint8_t choice = byte();

	act->op = choice >= 252 ? (uint32_t)choice - 252 + VN_ACTS : choice % VN_ACTS;
	choice = byte();
	act->nic = choice >= 252 ? n_nics : choice % (n_nics ? n_nics : 1);
	act->flags = act->op == VN_VHOST_OPEN ? byte() & 3 : byte() & VN_BARRIER;
}

static uint32_t way_of(const struct vn_nic *nic)
{
	return nic->macvtap ? VN_MACVTAP : nic->adopted ? VN_ADOPT : VN_TAP_OPEN;
}

/* As in a plan: every new row is opened before anything else is done to it. */
static void open_first(struct vn_program *program)
{
	for (uint32_t i = 0, at = 0; i < program->n_nics && at < program->n_acts; i++)
		if (!program->nics[i].held)
			program->acts[at++] = (struct vn_act){ .op = way_of(&program->nics[i]), .nic = i };
}

/* What no run survives, by the contract in the header. The core refuses more: acts in an order that means nothing. */
static bool nic_is_sound(const struct vn_nic *nic, uint32_t n_bridges)
{
	if (strnlen(nic->name, 16) == 16 || strnlen(nic->wish, 16) == 16 || strnlen(nic->alias, 128) == 128)
		return false;
	if (nic->queues < 1 || nic->queues > VN_MAX_QUEUES || !nic->tap_path || !nic->vhost_path)
		return false;
	if (nic->bridge < -1 || (nic->bridge >= 0 && (uint32_t)nic->bridge >= n_bridges))
		return false;
	if (nic->n_vlans > VN_MAX_VLANS || (nic->n_vlans > 0 && !nic->vlans))
		return false;
	if ((nic->rate > 0) != (nic->burst > 0 && nic->ceil_burst > 0 && nic->quantum > 0) ||
	    (nic->police_rate > 0) != (nic->police_burst > 0))
		return false;
	return !nic->held ||
	       (nic->n_tap + nic->macvtap > 0 && nic->n_tap <= nic->queues && nic->n_vhost <= nic->queues);
}

static bool act_is_sound(const struct vn_act *act, const struct vn_program *program)
{
	if (act->op > VN_DELETE || act->nic >= program->n_nics)
		return false;
	if (program->nics[act->nic].held && program->nics[act->nic].n_tap == 0 && act->op != VN_DELETE)
		return false;
	if (act->op == VN_MACVTAP)
		return !program->nics[act->nic].held && way_of(&program->nics[act->nic]) == VN_MACVTAP &&
		       !program->nics[act->nic].adopted && program->nics[act->nic].parent[0];
	if (act->op == VN_VHOST_OPEN)
		return !program->nics[act->nic].held || program->nics[act->nic].n_vhost == 0;
	if (act->op == VN_TAP_OPEN || act->op == VN_ADOPT)
		return !program->nics[act->nic].held && (program->nics[act->nic].adopted != 0) == (act->op == VN_ADOPT);
	if (act->op == VN_SELFTEST)
		return !program->nics[act->nic].held;
	if (act->op > VN_SELFTEST && act->op != VN_ATTACH && program->nics[act->nic].adopted)
		return false;
	if (program->nics[act->nic].macvtap && (act->op == VN_PERSIST || act->op == VN_COALESCE))
		return false;
	if (act->op == VN_TC)
		return program->nics[act->nic].held || program->nics[act->nic].rate ||
		       program->nics[act->nic].police_rate;
	if (act->op == VN_PERSIST)
		return program->nics[act->nic].persist && program->nics[act->nic].owner >= -1;
	if (act->op == VN_VLAN_ADD || act->op == VN_VLAN_DEL)
		return program->nics[act->nic].bridge >= 0 && program->nics[act->nic].n_vlans > 0;
	if (act->op == VN_DOWN || act->op == VN_UNFDB)
		return program->nics[act->nic].held && (act->op == VN_DOWN || program->nics[act->nic].set_fdb);
	return (act->op != VN_ATTACH && act->op != VN_DELETE) || program->nics[act->nic].held;
}

static bool is_sound(const struct vn_program *program)
{
	bool sound = program->n_nics > 0 && program->n_acts > 0;

	for (uint32_t i = 0; i < program->n_bridges; i++)
		sound &= strnlen(program->bridges[i].name, 16) < 16;
	for (uint32_t i = 0; i < program->n_nics; i++)
		sound &= nic_is_sound(&program->nics[i], program->n_bridges);
	for (uint32_t i = 0; i < program->n_acts && sound; i++)
		sound &= act_is_sound(&program->acts[i], program);
	return sound;
}

/* ---- what must hold -------------------------------------------------------------------------------------- */

static bool holds(const struct vn_nic *nic, int fd)
{
	for (uint32_t i = 0; i < nic->n_tap; i++)
		if (nic->tap_fds[i] == fd)
			return true;
	for (uint32_t i = 0; i < nic->n_vhost; i++)
		if (nic->vhost_fds[i] == fd)
			return true;
	return false;
}

/* Exactly what the rows hold is open. */
static void check_fds(const struct vn_program *program)
{
	for (int fd = 0; fd < next_fd_number; fd++) {
		int holders = 0;

		for (uint32_t i = 0; i < program->n_nics; i++)
			holders += holds(&program->nics[i], fd);
		REQUIRE(holders == (state[fd] == OPEN));
	}
	REQUIRE(mapped == 0 && directories == 0 && threads == 0 && nodes == 0);
}

static void check_result(const struct vn_program *program, int rc)
{
	for (uint32_t i = 0; i < program->n_nics; i++) {
		const struct vn_nic *nic = &program->nics[i];

		REQUIRE(program->keep || (rc < 0) == (nic->failed != 0));
		REQUIRE(memchr(nic->said, 0, VN_SAID));
		REQUIRE(nic->held || !nic->failed || nic->n_tap + nic->n_vhost == 0);
		REQUIRE(nic->n_vhost == 0 || nic->held || nic->n_vhost == nic->queues);
	}
	for (uint32_t i = 0; i < program->n_acts; i++)
		REQUIRE(program->acts[i].error <= 0 || (rc < 0 && !program->keep));
	check_fds(program);
}

static void run_and_check(struct vn_program *program)
{
	bool sound = is_sound(program);
	int rc;

	calls = 0;
	rc = vn_run(program);
	if (rc == -EINVAL && calls == 0)
		return;
	REQUIRE(sound);
	REQUIRE(rc <= 0 && calls > 0);
	check_result(program, rc);
	vn_close(program->nics, program->n_nics);
	for (int fd = 0; fd < next_fd_number; fd++)
		REQUIRE(state[fd] != OPEN);
}

static void program_from_input(void)
{
	static int32_t fds[ROWS][2 * VN_MAX_QUEUES];
	struct vn_program program = { .n_nics = byte() % ROWS, .n_bridges = byte() % 3, .keep = byte() & 1 };

	program.n_acts = byte() % 32;
	program.nics = calloc(program.n_nics, sizeof(*program.nics)); /* their ends are watched */
	program.acts = calloc(program.n_acts, sizeof(*program.acts));
	program.bridges = calloc(program.n_bridges, sizeof(*program.bridges));
	memset(fds, 0x7f, sizeof(fds)); /* numbers of nobody's fds */
	for (uint32_t i = 0; i < program.n_bridges; i++) {
		make_name(program.bridges[i].name, 16);
		program.bridges[i].ifindex = byte() & 1;
	}
	for (uint32_t i = 0; i < program.n_nics; i++)
		make_nic(&program.nics[i], fds[i], program.n_bridges);
	for (uint32_t i = 0; i < program.n_acts; i++)
		make_act(&program.acts[i], program.n_nics);
	if (byte() < 240)
		open_first(&program);
	run_and_check(&program);
	free(program.nics);
	free(program.acts);
	free(program.bridges);
}

static void questions_from_input(void)
{
	uint32_t n = byte() % 40, features, call;
	struct vn_link *links = calloc(n, sizeof(*links));
	bool sound = true;
	int rc;

	for (uint32_t i = 0; i < n; i++) {
		make_name(links[i].name, 16);
		sound &= strnlen(links[i].name, 16) < 16;
	}
	calls = 0;
	rc = vn_describe(links, n, &call);
	REQUIRE(sound ? rc <= 0 : rc == -EINVAL && calls == 0);
	for (uint32_t i = 0; i < n && sound; i++)
		REQUIRE(strnlen(links[i].kind, 16) < 16 && links[i].mac_len <= 32 && links[i].ports < 1024);
	free(links);
	REQUIRE(vn_features("/dev/net/tun", &features, &call) <= 0 && call != VN_CALL_NONE);
	for (int fd = 0; fd < next_fd_number; fd++)
		REQUIRE(state[fd] != OPEN);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	memset(state, 0, sizeof(state[0]) * (size_t)next_fd_number);
	memset(names, 0, sizeof(names[0]) * (size_t)next_fd_number);
	memset(groups, 0, sizeof(groups));
	memset(deleted, 0, sizeof(deleted));
	memset(macs, 0, sizeof(macs));
	for (int i = 0; i < LINKS; i++)
		macs[i][0] = 2, macs[i][5] = (uint8_t)i;
	next_fd_number = mapped = directories = threads = nodes = made_last = 0;
	uevents = -1;
	input = data;
	left = size;
	if (byte() % 8)
		program_from_input();
	else
		questions_from_input();
	return 0;
}
