/*
 * The ABI of the C core. Read twice: by the compiler, and by ffi.cdef(), which knows no preprocessor; so
 * declarations and integer #defines only.
 *
 * Every function returns 0 or -errno, keeps no state, and may run in many threads at once.
 */

#define VN_IFNAMSIZ 16
#define VN_MAX_QUEUES 256

/* Acts, in the order of a NIC's life. */
#define VN_TAP_OPEN 0
#define VN_VHOST_OPEN 1
#define VN_SELFTEST 2
#define VN_QDISC 3
#define VN_LINK 4
#define VN_UP 5
#define VN_ATTACH 6
#define VN_ACTS 7

/* vn_act.flags */
#define VN_OPTIONAL 1
#define VN_BARRIER 2

/* vn_act.call: the kernel call that refused. */
#define VN_CALL_NONE 0
#define VN_CALL_OPEN 1
#define VN_CALL_FSTAT 2
#define VN_CALL_TUNSETIFF 3
#define VN_CALL_TUNGETIFF 4
#define VN_CALL_SIOCGIFINDEX 5
#define VN_CALL_TUNSETQUEUE 6
#define VN_CALL_VHOST_GET_FEATURES 7
#define VN_CALL_VHOST_SET_OWNER 8
#define VN_CALL_VHOST_SET_FEATURES 9
#define VN_CALL_VHOST_SET_MEM_TABLE 10
#define VN_CALL_VHOST_SET_VRING 11
#define VN_CALL_VHOST_NET_SET_BACKEND 12
#define VN_CALL_MMAP 13
#define VN_CALL_SOCKET 14
#define VN_CALL_SEND 15
#define VN_CALL_RECV 16
#define VN_CALL_RTM_NEWQDISC 17
#define VN_CALL_RTM_NEWLINK 18
#define VN_CALL_TUNGETFEATURES 19

/* One NIC. The caller owns the memory; on success it also owns the fds, on failure none is open. */
struct vn_nic {
	/* in */
	char name[16];          /* NUL-terminated */
	const char *tap_path;   /* NUL-terminated; for TAP_OPEN */
	const char *vhost_path; /* NUL-terminated; for VHOST_OPEN and SELFTEST */
	uint32_t queues;        /* 1..VN_MAX_QUEUES */
	uint32_t tun_flags;     /* ifr_flags of TUNSETIFF, without IFF_TUN_EXCL */
	char bridge[16];        /* NUL-terminated; "" for none */
	uint32_t master;        /* its ifindex; 0 has it looked up */
	uint32_t mtu;           /* bytes; 0 is the bridge's, which is then put here */
	uint8_t mac[6];         /* of the TAP */
	uint8_t set_mac;
	uint8_t no_ipv6; /* no IPv6 address is generated on the TAP */
	/* out, but for ATTACH, which takes tap_fds as they are */
	int32_t *tap_fds;   /* [queues] */
	int32_t *vhost_fds; /* [queues] */
	uint32_t n_tap;     /* how many of them are open */
	uint32_t n_vhost;
	uint32_t bridge_mtu; /* of a bridge that was looked up */
	int32_t ifindex;
};

/* One step. */
struct vn_act {
	/* in */
	uint32_t op;
	uint32_t nic;
	uint32_t flags;
	/* out */
	int32_t error; /* 0 or -errno */
	uint32_t call;
	int32_t queue; /* the queue it is about, or -1 */
	uint64_t ns;   /* how long it took; the messages of one send share its time evenly */
};

/* One link to look up by name. */
struct vn_link {
	char name[16];   /* in, NUL-terminated */
	int32_t ifindex; /* out; 0 when there is no such link */
	uint32_t mtu;
	uint32_t mac_len;
	uint8_t mac[32];
	char kind[16]; /* "" for a link of no rtnetlink kind */
};

/* Run every act in order. On the first refusal everything this run opened is closed, in reverse. */
int vn_run(struct vn_nic *nics, uint32_t n_nics, struct vn_act *acts, uint32_t n_acts);

/* Look up links in the caller's network namespace. */
int vn_describe(struct vn_link *links, uint32_t n_links);

/* TUNGETFEATURES of the device at path; *call says what refused. */
int vn_features(const char *path, uint32_t *features, uint32_t *call);
