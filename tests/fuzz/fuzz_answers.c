/*
 * What the kernel may answer on netlink: any bytes at all, in a buffer that ends where they end, taken by each of the
 * answer functions. The first bytes choose which, how many messages were asked, and whether the answers are mended so
 * that they are to what was asked; otherwise nearly all would be passed over as somebody else's.
 */
#include "whole.h"

#define REQUIRE(fact) ((fact) ? (void)0 : abort())

enum { FIRST = 1000, PORT = 4711 };

/* One message of each tag, asked and not answered yet. */
static void ask(struct netlink *nl, uint32_t queued)
{
	nl->first = FIRST;
	nl->port = PORT;
	nl->queued = nl->pending = queued;
	for (uint32_t i = 0; i < NL_BATCH; i++)
		nl->tags[i] = i;
}

/* Make the answers ours, each to one of the messages that were asked. */
static void mend(char *data, size_t length, uint32_t queued)
{
	while (length >= sizeof(struct nlmsghdr)) {
		struct nlmsghdr *message = (struct nlmsghdr *)data;
		size_t size = NLMSG_ALIGN((size_t)message->nlmsg_len);

		message->nlmsg_pid = PORT;
		message->nlmsg_seq = FIRST + message->nlmsg_seq % queued;
		if (message->nlmsg_len < sizeof(*message) || message->nlmsg_len > length || size >= length)
			return;
		data += size;
		length -= size;
	}
}

static void to_acts(struct netlink *nl, const char *data, size_t length)
{
	struct vn_act acts[NL_BATCH];
	struct vn_nic nics[NL_BATCH] = { 0 };
	struct run run = { .acts = acts, .nics = nics };

	for (uint32_t i = 0; i < NL_BATCH; i++)
		acts[i] = (struct vn_act){ .op = i % 4 ? VN_LINK : VN_TC, .nic = i, .error = UNANSWERED };
	nl_parse(nl, data, length, take_answer, &run);
	REQUIRE(nl->pending <= nl->queued); /* no act is answered twice */
	for (uint32_t i = 0; i < NL_BATCH; i++) {
		REQUIRE(acts[i].error <= 0 || (acts[i].error == UNANSWERED && acts[i].call == VN_CALL_NONE));
		REQUIRE(memchr(nics[i].said, 0, VN_SAID) && (!nics[i].said[0] || acts[i].error < 0));
	}
}

/* Those of one act with three messages: it waits for what is not answered, and is refused once. */
static void to_one_act(struct netlink *nl, const char *data, size_t length)
{
	struct vn_act act = { .op = VN_TC, .error = (int32_t)nl->queued };
	struct vn_nic nic = { 0 };
	struct run run = { .acts = &act, .nics = &nic };

	for (uint32_t i = 0; i < NL_BATCH; i++)
		nl->tags[i] = i % 3 ? 0 : NL_DISPENSABLE;
	nl_parse(nl, data, length, take_answer, &run);
	REQUIRE(act.error < 0 || (uint32_t)act.error == nl->pending);
	REQUIRE(memchr(nic.said, 0, VN_SAID));
}

static void to_lookups(struct netlink *nl, const char *data, size_t length)
{
	struct vn_link links[NL_BATCH] = { 0 };

	nl_parse(nl, data, length, take_link, links);
	for (uint32_t i = 0; i < NL_BATCH; i++) {
		REQUIRE(links[i].mac_len <= sizeof(links[i].mac));
		REQUIRE(memchr(links[i].kind, 0, sizeof(links[i].kind)));
		REQUIRE(links[i].name[0] == 0);
	}
}

static void to_deleting(struct netlink *nl, const char *data, size_t length, bool listed)
{
	struct vn_nic nics[NL_BATCH] = { 0 };
	struct doomed doomed[NL_BATCH] = { 0 };
	struct listing listing = { .doomed = doomed, .n = NL_BATCH, .group = 0x47070707 };

	for (int i = 0; i < NL_BATCH; i++) {
		nics[i].ifindex = i + 1;
		doomed[i].nic = &nics[i];
		doomed[i].gone = i % 8 == 7;
	}
	if (listed)
		nl_parse(nl, data, length, take_listed, &listing);
	else
		nl_parse(nl, data, length, take_group_answer, doomed);
	for (int i = 0; i < NL_BATCH; i++)
		REQUIRE(doomed[i].error <= 0 && nics[i].ifindex == i + 1);
}

static void to_ack(struct netlink *nl, const char *data, size_t length)
{
	int error = 0;

	nl_parse(nl, data, length, take_ack, &error);
	REQUIRE(error <= 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
	static struct netlink nl;
	uint32_t queued;
	char *data;

	if (size < 3 || size > 3 + NL_ANSWER)
		return -1;
	queued = 1 + input[1] % NL_BATCH;
	data = malloc(size - 3); /* aligned, and its end is watched */
	if (!data)
		return -1;
	memcpy(data, input + 3, size - 3);
	if (input[2] & 1)
		mend(data, size - 3, queued);
	ask(&nl, queued);
	switch (input[0] % 6) {
	case 0:
		to_acts(&nl, data, size - 3);
		break;
	case 1:
		to_lookups(&nl, data, size - 3);
		break;
	case 2:
		to_deleting(&nl, data, size - 3, false);
		break;
	case 3:
		to_deleting(&nl, data, size - 3, true);
		break;
	case 4:
		to_one_act(&nl, data, size - 3);
		break;
	default:
		to_ack(&nl, data, size - 3);
	}
	free(data);
	return 0;
}
