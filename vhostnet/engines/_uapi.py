"""The kernel's numbers and struct layouts, for the engine that has no compiler to ask; a test compares them with it."""

from __future__ import annotations

import os
import struct
from typing import Final


def _ioc(direction: int, kind: str, number: int, size: int) -> int:
    """linux/ioctl.h; alpha, mips, powerpc and sparc count directions in three bits of their own."""
    if os.uname().machine.startswith(("alpha", "mips", "ppc", "sparc")):
        return {0: 1, 1: 4, 2: 2}[direction] << 29 | size << 16 | ord(kind) << 8 | number
    return direction << 30 | size << 16 | ord(kind) << 8 | number


_NONE, _WRITE, _READ = 0, 1, 2
TUNSETIFF: Final = _ioc(_WRITE, "T", 202, 4)
TUNGETFEATURES: Final = _ioc(_READ, "T", 207, 4)
TUNGETIFF: Final = _ioc(_READ, "T", 210, 4)
TUNSETQUEUE: Final = _ioc(_WRITE, "T", 217, 4)
TUNSETPERSIST: Final = _ioc(_WRITE, "T", 203, 4)
TUNSETOWNER: Final = _ioc(_WRITE, "T", 204, 4)
TUNSETGROUP: Final = _ioc(_WRITE, "T", 206, 4)
TUNSETOFFLOAD: Final = _ioc(_WRITE, "T", 208, 4)
TUNSETVNETHDRSZ: Final = _ioc(_WRITE, "T", 216, 4)
TUNGETDEVNETNS: Final = _ioc(_NONE, "T", 227, 0)
SIOCGIFMTU: Final = 0x8921
SIOCSIFHWADDR: Final = 0x8924
SIOCGIFHWADDR: Final = 0x8927
SIOCGIFINDEX: Final = 0x8933
SIOCETHTOOL: Final = 0x8946
SIOCGSKNS: Final = 0x894C
SIOCDEVPRIVATE: Final = 0x89F0
ETHTOOL_GDRVINFO: Final = 3
ETHTOOL_SCOALESCE: Final = 15
BRCTL_GET_PORT_LIST: Final = 7
VHOST_GET_FEATURES: Final = _ioc(_READ, "\xaf", 0x00, 8)
VHOST_SET_FEATURES: Final = _ioc(_WRITE, "\xaf", 0x00, 8)
VHOST_SET_OWNER: Final = _ioc(_NONE, "\xaf", 0x01, 0)
VHOST_RESET_OWNER: Final = _ioc(_NONE, "\xaf", 0x02, 0)
VHOST_SET_MEM_TABLE: Final = _ioc(_WRITE, "\xaf", 0x03, 8)
VHOST_SET_VRING_NUM: Final = _ioc(_WRITE, "\xaf", 0x10, 8)
VHOST_SET_VRING_ADDR: Final = _ioc(_WRITE, "\xaf", 0x11, 40)
VHOST_SET_VRING_BASE: Final = _ioc(_WRITE, "\xaf", 0x12, 8)
VHOST_NET_SET_BACKEND: Final = _ioc(_WRITE, "\xaf", 0x30, 8)
VIRTIO_NET_F_MRG_RXBUF: Final = 15
VIRTIO_F_VERSION_1: Final = 32
IFF_ATTACH_QUEUE: Final = 0x0200
IFF_UP: Final = 1
IFF_ALLMULTI: Final = 0x200
ARPHRD_ETHER: Final = 1
NETLINK_ROUTE: Final = 0
NETLINK_KOBJECT_UEVENT: Final = 15
SOL_NETLINK: Final = 270
NETLINK_EXT_ACK: Final = 11
NLM_F_REQUEST: Final = 0x001
NLM_F_ACK: Final = 0x004
NLM_F_DUMP_INTR: Final = 0x010
NLM_F_REPLACE: Final = 0x100
NLM_F_CAPPED: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_ACK_TLVS: Final = 0x200
NLM_F_DUMP: Final = 0x300
NLM_F_CREATE: Final = 0x400
NLM_F_APPEND: Final = 0x800
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLMSGERR_ATTR_MSG: Final = 1
NLA_F_NESTED: Final = 0x8000
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_SETLINK: Final = 19
RTM_NEWNEIGH: Final = 28
RTM_DELNEIGH: Final = 29
RTM_NEWQDISC: Final = 36
RTM_DELQDISC: Final = 37
RTM_NEWTCLASS: Final = 40
RTM_NEWTFILTER: Final = 44
RTM_NEWLINKPROP: Final = 108
TC_H_ROOT: Final = 0xFFFFFFFF
TC_H_INGRESS: Final = 0xFFFFFFF1
TCA_KIND: Final = 1
TCA_OPTIONS: Final = 2
TCA_HTB_PARMS: Final = 1
TCA_HTB_INIT: Final = 2
TCA_HTB_RATE64: Final = 6
TCA_HTB_CEIL64: Final = 7
TCA_U32_CLASSID: Final = 1
TCA_U32_SEL: Final = 5
TCA_U32_POLICE: Final = 6
TCA_POLICE_TBF: Final = 1
TCA_POLICE_RATE: Final = 2
TCA_POLICE_RATE64: Final = 8
TC_POLICE_SHOT: Final = 2
TC_U32_TERMINAL: Final = 1
TC_LINKLAYER_ETHERNET: Final = 1
TC_RTAB_SIZE: Final = 1024
ETH_P_ALL: Final = 3
IFLA_ADDRESS: Final = 1
IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
IFLA_LINK: Final = 5
IFLA_MASTER: Final = 10
IFLA_LINKINFO: Final = 18
IFLA_INFO_KIND: Final = 1
IFLA_INFO_DATA: Final = 2
IFLA_INFO_SLAVE_KIND: Final = 4
IFLA_INFO_SLAVE_DATA: Final = 5
IFLA_MACVLAN_MODE: Final = 1
IFLA_BR_VLAN_FILTERING: Final = 7
IFLA_BR_VLAN_DEFAULT_PVID: Final = 39
IFLA_BRPORT_LEARNING: Final = 8
IFLA_BRPORT_UNICAST_FLOOD: Final = 9
IFLA_BRPORT_ISOLATED: Final = 33
IFLA_BRIDGE_VLAN_INFO: Final = 2
NDA_LLADDR: Final = 2
NUD_NOARP: Final = 0x40
NTF_MASTER: Final = 0x04
IFLA_IFALIAS: Final = 20
IFLA_AF_SPEC: Final = 26
IFLA_GROUP: Final = 27
IFLA_EXT_MASK: Final = 29
IFLA_PROP_LIST: Final = 52
IFLA_ALT_IFNAME: Final = 53
IFLA_INET6_ADDR_GEN_MODE: Final = 8
IFLA_TUN_TYPE: Final = 3
IFLA_TUN_PI: Final = 4
IFLA_TUN_VNET_HDR: Final = 5
IFLA_TUN_PERSIST: Final = 6
IFLA_TUN_MULTI_QUEUE: Final = 7
IN6_ADDR_GEN_MODE_NONE: Final = 1
RTEXT_FILTER_SKIP_STATS: Final = 8

# struct ifreq: the name, then a union whose widest member is struct ifmap.
IFREQ_FLAGS: Final = struct.Struct(f"16sH{struct.calcsize('LLHBBB0L') - 2}x")
IFREQ_INDEX: Final = struct.Struct(f"16si{struct.calcsize('LLHBBB0L') - 4}x")
IFREQ_MAC: Final = struct.Struct(f"16sH6s{struct.calcsize('LLHBBB0L') - 8}x")  # ifr_hwaddr: family, address
IFREQ_DATA: Final = struct.Struct(f"16sP{struct.calcsize('LLHBBB0L') - struct.calcsize('P')}x")
DRVINFO: Final = struct.Struct("=I32s160x")  # struct ethtool_drvinfo: the command, the driver, what we do not read
NLMSGHDR: Final = struct.Struct("=IHHII")
IFINFOMSG: Final = struct.Struct("=BxHiII")
NDMSG: Final = struct.Struct("=BxxxiHBx")  # family, ifindex, state, flags
COALESCE: Final = struct.Struct("=I4xI80x")  # struct ethtool_coalesce: the command, rx_max_coalesced_frames
VLAN_INFO: Final = struct.Struct("=HH")
TCMSG: Final = struct.Struct("=BxxxiIII")
TC_RATESPEC: Final = struct.Struct("=BBHhHI")  # cell_log, linklayer, overhead, cell_align, mpu, rate
TC_HTB_GLOB: Final = struct.Struct("=IIIII")  # version, rate2quantum, defcls, debug, direct_pkts
TC_HTB_OPT: Final = struct.Struct("=12s12sIII8x")  # rate, ceil, buffer, cbuffer, quantum
TC_SFQ_QOPT: Final = struct.Struct("=IiIII52x")  # struct tc_sfq_qopt_v1: quantum, perturb_period, limit, divisor, flows
TC_POLICE: Final = struct.Struct("=IiIII12s24x")  # index, action, limit, burst, mtu, rate
TC_U32_SEL: Final = struct.Struct("=BxB13x")  # flags, nkeys
TC_U32_KEY: Final = struct.Struct("=16x")
VRING_STATE: Final = struct.Struct("=II")
VRING_FILE: Final = struct.Struct("=Ii")
VRING_ADDR: Final = struct.Struct("=IIQQQQ")
RTATTR: Final = struct.Struct("=HH")
