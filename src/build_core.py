"""Builds vhostnet._vhostnet: the C core through cffi's API mode.

The header is read twice, by the compiler and by cdef(), so the two cannot disagree. The kernel's numbers
below come from the compiler; the pure engine's own table is tested against them.
"""

import os
import sysconfig
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOMS = ("_vhostnet", "acts", "calls", "links", "netlink", "removal", "tc", "vhost")

KERNEL_NUMBERS = (
    *("TUNSETIFF", "TUNGETIFF", "TUNGETFEATURES", "TUNSETQUEUE", "SIOCGIFINDEX", "SIOCGIFMTU"),
    *("TUNSETOFFLOAD", "TUNSETVNETHDRSZ", "TUNSETOWNER", "TUNSETGROUP", "TUNSETPERSIST"),
    *("SIOCGIFHWADDR", "SIOCSIFHWADDR", "ARPHRD_ETHER"),
    *("SIOCETHTOOL", "ETHTOOL_GDRVINFO", "SIOCDEVPRIVATE", "BRCTL_GET_PORT_LIST", "SIOCGSKNS", "TUNGETDEVNETNS"),
    *("IFF_TUN", "IFF_TAP", "IFF_NO_PI", "IFF_VNET_HDR", "IFF_MULTI_QUEUE", "IFF_TUN_EXCL"),
    *("IFF_ATTACH_QUEUE", "IFF_DETACH_QUEUE", "IFF_PERSIST", "IFF_UP", "IFF_ALLMULTI"),
    *("VHOST_GET_FEATURES", "VHOST_SET_FEATURES", "VHOST_SET_OWNER", "VHOST_RESET_OWNER", "VHOST_SET_MEM_TABLE"),
    *("VHOST_SET_VRING_NUM", "VHOST_SET_VRING_BASE", "VHOST_SET_VRING_ADDR", "VHOST_NET_SET_BACKEND"),
    *("VIRTIO_NET_F_MRG_RXBUF", "VIRTIO_F_VERSION_1"),
    *("NETLINK_ROUTE", "NLM_F_REQUEST", "NLM_F_ACK", "NLM_F_CREATE", "NLM_F_REPLACE"),
    *("NLM_F_EXCL", "NLM_F_APPEND", "NLM_F_DUMP", "NLM_F_DUMP_INTR", "NLMSG_ERROR", "NLMSG_DONE", "NLA_F_NESTED"),
    *("RTM_SETLINK", "RTM_NEWNEIGH", "RTM_DELNEIGH", "NDA_LLADDR", "NUD_NOARP", "NTF_MASTER", "ETHTOOL_SCOALESCE"),
    *("IFLA_INFO_SLAVE_KIND", "IFLA_INFO_SLAVE_DATA", "IFLA_BR_VLAN_FILTERING", "IFLA_BR_VLAN_DEFAULT_PVID"),
    *("IFLA_BRPORT_LEARNING", "IFLA_BRPORT_UNICAST_FLOOD", "IFLA_BRPORT_ISOLATED", "IFLA_BRIDGE_VLAN_INFO"),
    *("RTM_NEWLINK", "RTM_DELLINK", "RTM_GETLINK", "RTM_NEWLINKPROP", "RTM_NEWQDISC", "TC_H_ROOT", "TCA_KIND"),
    *("RTM_DELQDISC", "RTM_NEWTCLASS", "RTM_NEWTFILTER", "TC_H_INGRESS", "TCA_OPTIONS", "ETH_P_ALL"),
    *("TCA_HTB_PARMS", "TCA_HTB_INIT", "TCA_HTB_RATE64", "TCA_HTB_CEIL64", "TC_LINKLAYER_ETHERNET", "TC_RTAB_SIZE"),
    *("TCA_U32_CLASSID", "TCA_U32_SEL", "TCA_U32_POLICE", "TC_U32_TERMINAL"),
    *("TCA_POLICE_TBF", "TCA_POLICE_RATE", "TCA_POLICE_RATE64", "TC_POLICE_SHOT"),
    *("SOL_NETLINK", "NETLINK_EXT_ACK", "NLM_F_CAPPED", "NLM_F_ACK_TLVS", "NLMSGERR_ATTR_MSG"),
    *("IFLA_LINK", "IFLA_MACVLAN_MODE", "NETLINK_KOBJECT_UEVENT"),
    *("IFLA_ADDRESS", "IFLA_IFNAME", "IFLA_MTU", "IFLA_MASTER", "IFLA_LINKINFO", "IFLA_INFO_KIND"),
    *("IFLA_AF_SPEC", "IFLA_EXT_MASK", "IFLA_INET6_ADDR_GEN_MODE", "IN6_ADDR_GEN_MODE_NONE"),
    *("IFLA_IFALIAS", "IFLA_GROUP", "IFLA_PROP_LIST", "IFLA_ALT_IFNAME", "RTEXT_FILTER_SKIP_STATS"),
    *(
        "IFLA_INFO_DATA",
        "IFLA_TUN_TYPE",
        "IFLA_TUN_PI",
        "IFLA_TUN_PERSIST",
        "IFLA_TUN_VNET_HDR",
        "IFLA_TUN_MULTI_QUEUE",
    ),
)
KERNEL_STRUCTS = (
    *("ifreq", "ethtool_drvinfo", "ethtool_coalesce", "nlmsghdr", "ifinfomsg", "tcmsg", "ndmsg", "bridge_vlan_info"),
    *("vhost_vring_state", "vhost_vring_addr"),
    *("tc_ratespec", "tc_htb_glob", "tc_htb_opt", "tc_sfq_qopt_v1", "tc_police", "tc_u32_sel", "tc_u32_key"),
)

PRELUDE = """
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <linux/ethtool.h>
#include <linux/if.h>
#include <linux/if_arp.h>
#include <linux/if_bridge.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <linux/vhost.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include "_vhostnet.h"
"""

# An overflow ends the process where it happens, and what is read-only or no code stays that. -U, because compilers of
# some distributions define the macro already.
HARDENED = (
    *("-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3", "-fstack-protector-strong", "-fstack-clash-protection"),
    *("-Wformat", "-Wformat-security"),
)
# Branches and returns go where the compiler meant them to: a flag of its own for each kind of machine.
BRANCHES = {"linux-x86_64": ("-fcf-protection",), "linux-aarch64": ("-mbranch-protection=standard",)}
LINKED = ("-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,noexecstack")

ffibuilder = FFI()
ffibuilder.cdef((HERE / "_vhostnet.h").read_text())
ffibuilder.cdef("".join(f"#define {name} ...\n" for name in KERNEL_NUMBERS))
ffibuilder.cdef("".join(f"struct {name} {{ ...; }};\n" for name in KERNEL_STRUCTS))
ffibuilder.set_source(
    "vhostnet._vhostnet",
    PRELUDE,
    sources=[f"src/{room}.c" for room in ROOMS],
    include_dirs=["src"],
    depends=["src/core.h", *(f"src/{room}.h" for room in ROOMS)],
    extra_compile_args=[
        *("-std=gnu11", "-O2", "-fvisibility=hidden", "-pthread"),
        *(HARDENED + BRANCHES.get(sysconfig.get_platform(), ())),
    ],
    extra_link_args=["-pthread", *LINKED],
    # Without a compiler the install goes on with the pure engine; VHOSTNET_BUILD=native makes that an error.
    optional=os.environ.get("VHOSTNET_BUILD") != "native",
)
