/* rtnetlink: messages that go out many to a send, and their answers. */

#ifndef VN_NETLINK_H
#define VN_NETLINK_H

#include <stddef.h>
#include <stdint.h>

#include <sys/types.h>

#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include "core.h"

enum {
	NL_BATCH = 64,	  /* messages of one send: what it holds RTNL for stays short */
	NL_MESSAGE = 256, /* more than any message there is, but for those with a list or a table */
};

/* Of a tag: what the message is about may be missing, or be of another kind (ENOENT, EINVAL), and that is good, too. */
#define NL_DISPENSABLE 0x80000000U

struct netlink {
	int fd;
	uint32_t port;
	uint32_t first;	  /* sequence number of the first message in out */
	uint32_t queued;  /* messages in out */
	uint32_t pending; /* requests without an answer */
	size_t length;
	uint32_t tags[NL_BATCH]; /* what each message is about, until it has its answer */
	char out[NL_BATCH * NL_MESSAGE];
};

/* An answer to the message of that tag. 1: the last one, 0: there is more to come, -errno: it is malformed. */
typedef int answer_fn(void *context, uint32_t tag, const struct nlmsghdr *message);

int nl_open(struct netlink *nl);

/* From now on a refusal may have words. */
void nl_ask_for_words(const struct netlink *nl);

/* A socket that hears what the kernel says of this network namespace's new devices, from now on. */
int open_uevents(void);

/* The number of the character device of the macvtap of this ifindex. ENODATA where the kernel said nothing of it. */
int device_number(int events, int ifindex, dev_t *number);

/* A message of this size of body, which nl_end() queues; its answers come with this tag. */
struct nlmsghdr *nl_begin(struct netlink *nl, uint16_t type, uint16_t flags, uint32_t tag, const void *body,
			  size_t size);
struct rtattr *nl_attr(struct nlmsghdr *message, uint16_t type, const void *value, size_t size);
void nl_end_nest(struct nlmsghdr *message, struct rtattr *nest);
void nl_end(struct netlink *nl, const struct nlmsghdr *message);

/* Send what is queued and read every answer; *call says which of the two failed. */
int nl_exchange(struct netlink *nl, answer_fn *answer, void *context, uint32_t *call);

/* The errno of an NLMSG_ERROR into *error; 0 there is an acknowledgement. */
int nl_error(const struct nlmsghdr *message, int *error);

/* The words of one, as many as there is room for; "" for none. */
void nl_words(const struct nlmsghdr *message, char *words, size_t room);

/* The attribute at *data, stepping over it; NULL at the end or where the rest is malformed. */
const struct rtattr *next_attr(const char **data, size_t *left);

/* The attributes of a link: where they begin, and how many bytes they have; NULL where the message is too short. */
const char *link_attrs(const struct nlmsghdr *message, size_t *left);

#endif
