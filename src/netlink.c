/* rtnetlink: messages that go out many to a send, and their answers. */

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/socket.h>
#include <sys/sysmacros.h>

#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include "calls.h"
#include "netlink.h"

enum {
	NL_ANSWER = 32768, /* what the kernel puts into one datagram of a listing, at the most */
	UEVENT = 4096,	   /* more than one is: UEVENT_BUFFER_SIZE, and its head */
	UEVENTS = 1,	   /* the kernel's own, of its two groups */
};

#define NL_ANSWERED UINT32_MAX /* in the place of a tag */

int nl_open(struct netlink *nl)
{
	struct sockaddr_nl address = { .nl_family = AF_NETLINK };
	socklen_t size = sizeof(address);

	nl->first = nl->queued = nl->pending = 0;
	nl->length = 0;
	nl->fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (nl->fd < 0)
		return -errno;
	if (bind(nl->fd, (struct sockaddr *)&address, size) < 0 ||
	    getsockname(nl->fd, (struct sockaddr *)&address, &size) < 0) {
		int rc = -errno;

		close(nl->fd);
		nl->fd = -1;
		return rc;
	}
	nl->port = address.nl_pid;
	return 0;
}

/* A kernel that has none says nothing but the errno. */
void nl_ask_for_words(const struct netlink *nl)
{
	int on = 1;

	setsockopt(nl->fd, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof(on));
}

int open_uevents(void)
{
	struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = UEVENTS };
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);

	if (fd < 0)
		return -errno;
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		int rc = -errno;

		close(fd);
		return rc;
	}
	return fd;
}

/* The next one; 0 for what is no whole one of the kernel's. */
static ssize_t next_uevent(int events, char *text, size_t size)
{
	struct sockaddr_nl from = { 0 };
	struct iovec iov = { .iov_base = text, .iov_len = size };
	struct msghdr header = { .msg_name = &from, .msg_namelen = sizeof(from), .msg_iov = &iov, .msg_iovlen = 1 };
	int tries = EINTR_TRIES;
	ssize_t length;

	do
		length = recvmsg(events, &header, MSG_DONTWAIT);
	while (length < 0 && errno == EINTR && tries-- > 0);
	return length > 0 && (from.nl_pid != 0 || header.msg_flags & MSG_TRUNC) ? 0 : length;
}

/* What a variable of a uevent says, as its strings have it: NAME=VALUE; NULL where it has none. */
static const char *variable(const char *text, size_t length, const char *name)
{
	size_t size = strlen(name);

	for (const char *at = text; at < text + length; at += strlen(at) + 1)
		if (strncmp(at, name, size) == 0)
			return at + size;
	return NULL;
}

/* It is said inside the send that makes the link: what is not there now will never come. */
int device_number(int events, int ifindex, dev_t *number)
{
	char text[UEVENT + 1], device[16];
	ssize_t length;

	snprintf(device, sizeof(device), "tap%d", ifindex);
	while ((length = next_uevent(events, text, UEVENT)) >= 0) {
		const char *name, *major, *minor;

		text[length] = 0;
		name = variable(text, (size_t)length, "DEVNAME=");
		major = variable(text, (size_t)length, "MAJOR=");
		minor = variable(text, (size_t)length, "MINOR=");
		if (name && major && minor && strcmp(name, device) == 0) {
			*number =
				makedev((unsigned int)strtoul(major, NULL, 10), (unsigned int)strtoul(minor, NULL, 10));
			return 0;
		}
	}
	return errno == EAGAIN ? -ENODATA : -errno;
}

struct nlmsghdr *nl_begin(struct netlink *nl, uint16_t type, uint16_t flags, uint32_t tag, const void *body,
			  size_t size)
{
	struct nlmsghdr *message = (struct nlmsghdr *)(nl->out + nl->length);

	memset(message, 0, NL_MESSAGE);
	message->nlmsg_len = (uint32_t)NLMSG_LENGTH(size);
	message->nlmsg_type = type;
	message->nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags);
	message->nlmsg_seq = nl->first + nl->queued;
	nl->tags[nl->queued] = tag;
	memcpy(NLMSG_DATA(message), body, size);
	return message;
}

struct rtattr *nl_attr(struct nlmsghdr *message, uint16_t type, const void *value, size_t size)
{
	struct rtattr *attribute = (struct rtattr *)((char *)message + NLMSG_ALIGN(message->nlmsg_len));

	attribute->rta_type = type;
	attribute->rta_len = (uint16_t)RTA_LENGTH(size);
	if (size > 0)
		memcpy(RTA_DATA(attribute), value, size);
	message->nlmsg_len = (uint32_t)(NLMSG_ALIGN(message->nlmsg_len) + RTA_LENGTH(size));
	return attribute;
}

void nl_end_nest(struct nlmsghdr *message, struct rtattr *nest)
{
	nest->rta_len = (uint16_t)((char *)message + message->nlmsg_len - (char *)nest);
}

void nl_end(struct netlink *nl, const struct nlmsghdr *message)
{
	nl->length += NLMSG_ALIGN(message->nlmsg_len);
	nl->queued++;
}

/* Go through one datagram; answers to somebody else, second ones and stray messages are passed over. */
static int nl_parse(struct netlink *nl, const char *data, size_t length, answer_fn *answer, void *context)
{
	while (length >= sizeof(struct nlmsghdr)) {
		const struct nlmsghdr *message = (const struct nlmsghdr *)data;
		size_t size = NLMSG_ALIGN((size_t)message->nlmsg_len);
		uint32_t number = message->nlmsg_seq - nl->first;
		int rc = 0;

		if (message->nlmsg_len < sizeof(*message) || message->nlmsg_len > length)
			return -EBADMSG;
		if (message->nlmsg_pid == nl->port && number < nl->queued && nl->tags[number] != NL_ANSWERED)
			rc = answer(context, nl->tags[number], message);
		if (rc < 0)
			return rc;
		if (rc > 0) {
			nl->tags[number] = NL_ANSWERED;
			nl->pending--;
		}
		if (size >= length)
			return 0;
		data += size;
		length -= size;
	}
	return length ? -EBADMSG : 0;
}

static int nl_receive(struct netlink *nl, answer_fn *answer, void *context)
{
	_Alignas(struct nlmsghdr) char data[NL_ANSWER];
	struct sockaddr_nl from = { 0 };
	struct iovec iov = { .iov_base = data, .iov_len = sizeof(data) };
	struct msghdr header = { .msg_name = &from, .msg_namelen = sizeof(from), .msg_iov = &iov, .msg_iovlen = 1 };
	int tries = EINTR_TRIES;
	ssize_t length;

	/* rtnetlink answers inside send(): an answer that is not there now will never come. */
	do
		length = recvmsg(nl->fd, &header, MSG_DONTWAIT);
	while (length < 0 && errno == EINTR && tries-- > 0);
	if (length < 0)
		return -errno;
	if (header.msg_flags & MSG_TRUNC)
		return -EMSGSIZE;
	if (from.nl_pid != 0)
		return 0; /* not from the kernel */
	return nl_parse(nl, data, (size_t)length, answer, context);
}

int nl_exchange(struct netlink *nl, answer_fn *answer, void *context, uint32_t *call)
{
	struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
	size_t length = nl->length;
	int tries = EINTR_TRIES, rc = 0;
	ssize_t sent;

	*call = VN_CALL_SEND;
	if (nl->queued == 0)
		return 0; /* every NIC of these acts has failed; the kernel warns of empty messages */
	do
		sent = sendto(nl->fd, nl->out, length, 0, (struct sockaddr *)&kernel, sizeof(kernel));
	while (sent < 0 && errno == EINTR && tries-- > 0);
	if (sent != (ssize_t)length)
		rc = sent < 0 ? -errno : -EMSGSIZE;
	else
		*call = VN_CALL_RECV;
	for (nl->pending = nl->queued; rc == 0 && nl->pending > 0;)
		rc = nl_receive(nl, answer, context);
	nl->first += nl->queued; /* so that a late answer to these is nobody's */
	nl->queued = 0;
	nl->length = 0;
	return rc;
}

int nl_error(const struct nlmsghdr *message, int *error)
{
	const struct nlmsgerr *answer = NLMSG_DATA(message);

	if (message->nlmsg_len < NLMSG_LENGTH(sizeof(*answer)) || answer->error > 0)
		return -EBADMSG;
	*error = answer->error;
	return 1;
}

/* They come after what was asked, which an error has whole and an acknowledgement without its body. */
void nl_words(const struct nlmsghdr *message, char *words, size_t room)
{
	const struct nlmsgerr *answer = NLMSG_DATA(message);
	size_t asked = message->nlmsg_flags & NLM_F_CAPPED ? sizeof(answer->msg) : answer->msg.nlmsg_len;
	size_t skip = NLMSG_HDRLEN + offsetof(struct nlmsgerr, msg) + NLMSG_ALIGN(asked), left;
	const struct rtattr *attribute;
	const char *data = (const char *)message + skip;

	words[0] = 0;
	if (!(message->nlmsg_flags & NLM_F_ACK_TLVS) || skip > message->nlmsg_len)
		return;
	left = message->nlmsg_len - skip;
	while ((attribute = next_attr(&data, &left)))
		if (attribute->rta_type == NLMSGERR_ATTR_MSG) {
			size_t size = RTA_PAYLOAD(attribute) < room - 1 ? RTA_PAYLOAD(attribute) : room - 1;

			memcpy(words, RTA_DATA(attribute), size);
			words[size] = 0;
		}
}

const struct rtattr *next_attr(const char **data, size_t *left)
{
	const struct rtattr *attribute = (const struct rtattr *)*data;
	size_t size;

	if (*left < sizeof(*attribute) || attribute->rta_len < sizeof(*attribute) || attribute->rta_len > *left)
		return NULL;
	size = RTA_ALIGN((size_t)attribute->rta_len);
	size = size < *left ? size : *left;
	*data += size;
	*left -= size;
	return attribute;
}

const char *link_attrs(const struct nlmsghdr *message, size_t *left)
{
	if (message->nlmsg_len < NLMSG_SPACE(sizeof(struct ifinfomsg)))
		return NULL;
	*left = message->nlmsg_len - NLMSG_SPACE(sizeof(struct ifinfomsg));
	return (const char *)message + NLMSG_SPACE(sizeof(struct ifinfomsg));
}
