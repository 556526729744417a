/*
 * The ABI of the C core. Read twice: by the compiler, and by ffi.cdef(), which knows no preprocessor; so
 * declarations and integer #defines only.
 *
 * Every function returns 0 or -errno, keeps no state, and may run in many threads at once.
 */

#define VN_IFNAMSIZ 16
#define VN_ALIASSIZ 128
#define VN_MAX_QUEUES 256
#define VN_MAX_PORTS 1023
#define VN_MAX_VLANS 1024
#define VN_SAID 96

/* Acts, in the order of a NIC's life. */
#define VN_TAP_OPEN 0
#define VN_ADOPT 1
#define VN_MACVTAP 2
#define VN_VHOST_OPEN 3
#define VN_SELFTEST 4
#define VN_QDISC 5
#define VN_LEAVE 6
#define VN_LINK 7
#define VN_VLAN_ADD 8
#define VN_VLAN_DEL 9
#define VN_FDB 10
#define VN_COALESCE 11
#define VN_TC 12
#define VN_UP 13
#define VN_DOWN 14
#define VN_UNFDB 15
#define VN_PERSIST 16
#define VN_ATTACH 17
#define VN_ALTNAME 18
#define VN_RENAME 19
#define VN_DELETE 20
#define VN_ACTS 21

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
#define VN_CALL_BRCTL_GET_PORT_LIST 20
#define VN_CALL_TUNGETDEVNETNS 21
#define VN_CALL_RTM_GETLINK 22
#define VN_CALL_RTM_DELLINK 23
#define VN_CALL_RTM_NEWLINKPROP 24
#define VN_CALL_RLIMIT_NOFILE 25
#define VN_CALL_SIOCGIFHWADDR 26
#define VN_CALL_SIOCSIFHWADDR 27
#define VN_CALL_GETRANDOM 28
#define VN_CALL_IFLA_BR_VLAN_FILTERING 29
#define VN_CALL_RTM_SETLINK 30
#define VN_CALL_RTM_NEWNEIGH 31
#define VN_CALL_ETHTOOL_SCOALESCE 32
#define VN_CALL_TUNSETOFFLOAD 33
#define VN_CALL_TUNSETVNETHDRSZ 34
#define VN_CALL_TUNSETOWNER 35
#define VN_CALL_TUNSETGROUP 36
#define VN_CALL_TUNSETPERSIST 37
#define VN_CALL_RTM_DELQDISC 38
#define VN_CALL_RTM_NEWTCLASS 39
#define VN_CALL_RTM_NEWTFILTER 40
#define VN_CALL_UEVENT 41
#define VN_CALL_MKNOD 42
#define VN_CALL_RTM_DELNEIGH 43

/* One VLAN of a port, or an end of a range of them: struct bridge_vlan_info. */
struct vn_vlan {
	uint16_t flags;
	uint16_t vid; /* 1..4094 */
};

/*
 * One NIC. The caller owns the memory, and the fds of rows that did not fail. What a run opened for a row that failed
 * is closed; the fds of a row that is held are closed by DELETE alone. VHOST_OPEN is for a row that has no vhost-net fds.
 * A macvtap is a link of its own, and stays when its fds are closed: it is deleted, and known by its alias.
 */
struct vn_nic {
	/* in */
	char name[16];          /* NUL-terminated */
	const char *tap_path;   /* NUL-terminated; for TAP_OPEN */
	const char *vhost_path; /* NUL-terminated; for VHOST_OPEN and SELFTEST */
	uint32_t queues;        /* 1..VN_MAX_QUEUES */
	uint32_t tun_flags;     /* ifr_flags of TUNSETIFF, without IFF_TUN_EXCL */
	int32_t bridge;         /* its place in the table of bridges; -1 for none */
	uint32_t mtu;           /* bytes; 0 is the bridge's, which is then put here */
	uint8_t mac[6];         /* of the TAP */
	uint8_t set_mac;
	uint8_t no_ipv6; /* no IPv6 address is generated on the TAP */
	uint8_t up;      /* LINK brings it up, too */
	char wish[16];   /* NUL-terminated; for ALTNAME and RENAME */
	char alias[128]; /* NUL-terminated; "" leaves it alone */
	uint32_t held;   /* the NIC exists: these five are in, not out */
	int32_t *tap_fds;   /* [queues] */
	int32_t *vhost_fds; /* [queues] */
	uint32_t n_tap;     /* how many of them are open */
	uint32_t n_vhost;
	int32_t ifindex;
	/* in: what it is on its bridge; UP sets what is not an act of its own */
	const struct vn_vlan *vlans; /* [n_vlans]; for VLAN_ADD and VLAN_DEL */
	uint32_t n_vlans;	     /* 0..VN_MAX_VLANS */
	uint32_t frames;	     /* rx-frames, for COALESCE */
	uint8_t isolated;
	uint8_t set_fdb;    /* the bridge neither learns from it nor floods to it: its forwarding table has guest_mac, by FDB */
	uint8_t guest_mac[6];
	uint8_t adopted; /* the TAP is there, and somebody else's: by ADOPT, and closed it stays */
	uint8_t persist; /* by PERSIST: closed it stays, and is for owner and group to open */
	int64_t owner;	 /* -1: none */
	int64_t group;
	/* in: its bandwidth, by TC; rates in bytes a second, bursts in ticks of 64 ns: how long they take at the rate */
	uint64_t rate; /* of what it sends; 0 has no limit, and no more of these five */
	uint64_t ceil; /* what it may send in a burst */
	uint32_t burst;
	uint32_t ceil_burst;
	uint32_t quantum;    /* bytes */
	uint32_t police_burst; /* of what comes in by it */
	uint64_t police_rate;  /* 0 has no limit */
	uint8_t macvtap; /* by MACVTAP, and not TAP_OPEN; one that is held may have no fds */
	uint32_t mode;	 /* IFLA_MACVLAN_MODE */
	char parent[16]; /* NUL-terminated: the link it is on top of */
	uint8_t all_multicast; /* IFF_ALLMULTI */
	/* out */
	int32_t parent_index;
	uint32_t failed; /* an act of it was refused, and the later ones were left out */
	char said[VN_SAID]; /* NUL-terminated; what the kernel said of its TC in words, when it refused that */
};

/* One bridge that NICs join. */
struct vn_bridge {
	char name[16];    /* NUL-terminated */
	uint32_t ifindex; /* 0 has it looked up */
	/* out, where it was looked up */
	uint32_t mtu;
	uint32_t ports; /* in use, those that this run is to add among them; not counted where it adds none */
	uint32_t default_vid; /* the VLAN that a new port is in, 0 for none; asked only where a NIC is to be in VLANs */
	int32_t error;  /* 0, or -errno when it was not found or is no bridge */
};

/* One step. */
struct vn_act {
	/* in */
	uint32_t op;
	uint32_t nic;
	uint32_t flags;
	/* out */
	int32_t error; /* 0 or -errno; -ECANCELED when an earlier act of its NIC was refused */
	uint32_t call;
	int32_t queue; /* the queue it is about, or -1 */
	uint64_t ns;   /* how long it took; the messages of one send share its time evenly */
};

struct vn_program {
	struct vn_nic *nics;
	struct vn_act *acts;
	struct vn_bridge *bridges;
	uint32_t n_nics;
	uint32_t n_acts;
	uint32_t n_bridges;
	uint32_t keep; /* go on with the other NICs when one is refused */
	/* out: what was refused while NICs that failed were deleted; those were closed instead */
	int32_t undo_error; /* 0, or the first -errno */
	uint32_t undo_call;
};

/* One link to look up by name. */
struct vn_link {
	char name[16];   /* in, NUL-terminated */
	int32_t ifindex; /* out; 0 when there is no such link */
	uint32_t mtu;
	uint32_t mac_len;
	uint8_t mac[32];
	char kind[16];  /* "" for a link of no rtnetlink kind */
	char alias[128];
	uint32_t ports; /* of a bridge: how many it has */
	uint32_t tun_flags; /* of a TUN or TAP device: its ifr_flags, as TUNGETIFF has them */
	uint32_t vlan_filtering; /* of a bridge: it heeds VLANs */
};

/*
 * Run every act in order. On the first refusal everything this run made is deleted; with keep, only what it made of
 * the NIC that was refused, and the run goes on. 0, or the first -errno.
 *
 * -EINVAL and no act with an error: the Program is malformed. Nothing was done, and vn_nic.failed means nothing.
 */
int vn_run(struct vn_program *program);

/* Close every fd of these rows, side by side: the last fd of a TAP and each of vhost-net waits for a grace period. */
int vn_close(struct vn_nic *nics, uint32_t n_nics);

/* Look up links in the caller's network namespace; *call says what refused. */
int vn_describe(struct vn_link *links, uint32_t n_links, uint32_t *call);

/* TUNGETFEATURES of the device at path; *call says what refused. */
int vn_features(const char *path, uint32_t *features, uint32_t *call);
