"""<network> -> Network, and what a NIC of it becomes: what it would be if everything had been written in it."""

import dataclasses

import pytest

import vhostnet
from vhostnet import (
    Bandwidth,
    DirectSource,
    InterfaceSpec,
    Network,
    PortGroup,
    PortProfile,
    Rate,
    SpecError,
    VhostnetWarning,
    Vlan,
)

MAC = "52:54:00:00:00:01"
NIC = f"<interface type='network'><mac address='{MAC}'/><model type='virtio'/>{{}}</interface>"
LAB = """\
<network connections='2' ipv6='yes'>
  <name>lab</name>
  <uuid>0e2c2c0e-3b05-4f4b-9e0f-2f4f3e0b6a11</uuid>
  <forward mode='nat'><nat><port start='1024' end='65535'/></nat></forward>
  <bridge name='virbr7' stp='on' delay='0' macTableManager='libvirt'/>
  <mtu size='1400'/>
  <mac address='52:54:00:aa:bb:cc'/>
  <domain name='lab.example' localOnly='yes'/>
  <dns><host ip='10.7.0.2'><hostname>db</hostname></host></dns>
  <bandwidth><inbound average='1000' peak='5000' burst='5120'/></bandwidth>
  <port isolated='yes'/>
  <ip address='10.7.0.1' netmask='255.255.255.0'><dhcp><range start='10.7.0.2' end='10.7.0.99'/></dhcp></ip>
  <ip family='ipv6' address='2001:db8:7::1' prefix='64'/>
  <route address='10.9.0.0' prefix='16' gateway='10.7.0.9'/>
  <portgroup name='all' default='yes'/>
  <portgroup name='sales'/>
</network>
"""
NETWORK = Network(
    name="lab",
    forward="nat",
    bridge="virbr7",
    mac_table_manager="libvirt",
    mtu=1400,
    isolated=True,
    portgroups=(PortGroup(name="all", default=True), PortGroup(name="sales")),
)
OFFICE = """<network>
  <name>lab</name>
  <forward mode='bridge'/>
  <bridge name='virbr7'/>
  <port isolated='yes'/>
  <vlan><tag id='7'/></vlan>
  <portgroup name='all' default='yes'/>
  <portgroup name='sales'><vlan><tag id='20'/></vlan></portgroup>
  <portgroup name='trunk'><vlan trunk='yes'><tag id='30'/><tag id='31'/></vlan></portgroup>
</network>
"""


def document(inside, name="lab", attributes=""):
    return f"<network{attributes}>\n<name>{name}</name>\n{inside}</network>"


def plugged(network, source="network='lab'", inside="", **how):
    networks = {"lab": vhostnet.parse_network(network) if isinstance(network, str) else network}
    text = NIC.format(f"\n<source {source}/>{inside}")
    return vhostnet.parse_interface(text, networks=networks, strict=True, **how)


# --- what is read ----------------------------------------------------------------------------------------


def test_all_that_bears_on_a_nic_is_read_and_nothing_else_is_said():
    assert vhostnet.parse_network(LAB, strict=True) == NETWORK
    assert vhostnet.parse_network(LAB.encode("utf-16"), strict=True) == NETWORK


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ("", {}),
        ("<bridge name='virbr%d'/>", {}),
        ("<bridge stp='off'/>", {}),
        ("<bridge name='br0' macTableManager='kernel'/>", {"bridge": "br0"}),
        ("<forward/>", {"forward": "nat"}),
        ("<forward mode=''/>", {"forward": "nat"}),
        ("<forward dev='eth0'/>", {"forward": "nat", "devices": ("eth0",)}),
        ("<forward mode='open'/><bridge name='br0'/>", {"forward": "open", "bridge": "br0"}),
        ("<forward mode='bridge'/><bridge name='br0'/>", {"forward": "bridge", "bridge": "br0"}),
        (
            "<forward mode='bridge' dev='eth0'><interface dev='eth0'/><interface dev='eth1'/></forward>",
            {"forward": "bridge", "devices": ("eth0", "eth1")},
        ),
        (
            "<forward mode='passthrough'><interface dev='eth1' connections='1'/></forward>",
            {"forward": "passthrough", "devices": ("eth1",)},
        ),
        ("<forward mode='vepa'><pf dev='eth1'/></forward>", {"forward": "vepa", "later": ("pf",)}),
        (
            "<forward mode='hostdev' managed='yes'><driver name='vfio'/><pf dev='eth1'/></forward>",
            {"forward": "hostdev", "later": ("pf",)},
        ),
        ("<port isolated='no'/><mtu size='0'/><portgroup name='a'/>", {"isolated": False, "portgroups": ("a",)}),
        ("<portgroup name='a' default='no'/>", {"portgroups": ("a",)}),
        (
            "<virtualport type='openvswitch'/>",
            {"virtualport": PortProfile("openvswitch")},
        ),
        (
            "<virtualport type='802.1Qbg'><parameters typeid='2' managerid='11'/></virtualport>",
            {"virtualport": PortProfile("802.1Qbg", (("managerid", "11"), ("typeid", "2")))},
        ),
        (
            "<dnsmasq:options xmlns:dnsmasq='http://libvirt.org/schemas/network/dnsmasq/1.0'>"
            "<dnsmasq:option value='x'/></dnsmasq:options>",
            {},
        ),
    ],
)
def test_what_is_read(inside, expected):
    groups = tuple(PortGroup(name=name) for name in expected.get("portgroups", ()))
    expected = Network(name="lab", **{**expected, "portgroups": groups})
    assert vhostnet.parse_network(document(inside), strict=True) == expected


def test_an_empty_bandwidth_of_a_group_is_none():
    groups = "<portgroup name='a'><bandwidth/></portgroup>"
    groups += "<portgroup name='b'><bandwidth><inbound average='1'/></bandwidth></portgroup>"
    first, second = vhostnet.parse_network(document(groups), strict=True).portgroups
    assert (first.bandwidth, second.bandwidth) == (None, Bandwidth(Rate(1)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<interface/>", "line 1: <interface> is not a network; expected <network>"),
        ("<network><bridge name='br0'/></network>", "line 1: <network> has no <name>"),
        (document("", name=""), "line 2: <name> is not allowed; expected a network's name"),
        (document("", name="a/b"), "line 2: <name> is not allowed; expected a network's name, without /"),
        (document("<name>x</name>"), "line 3: <name> is given twice"),
        (document("<forward mode='NAT'/>"), "line 3: <forward mode='NAT'> is not readable; expected nat or route"),
        (document("<forward mode='private'/>\n<bridge name='br0'/>"), "line 4: <bridge name='br0'> is not allowed"),
        (document("<forward mode='bridge' dev='eth0'/>\n<bridge name='br0'/>"), "line 3: <forward dev='eth0'>"),
        (document("<forward mode='bridge'/>\n<mtu size='1400'/>"), "line 4: <mtu size='1400'> is not allowed"),
        (document("<mtu size='67'/>"), "line 3: <mtu size='67'> is not allowed; expected a whole number of bytes"),
        (document("<mtu size='x'/>"), "line 3: <mtu size='x'> is not readable"),
        (document("<bridge name='a/b'/>"), "line 3: <bridge name='a/b'> is not allowed"),
        (document("<bridge name='br0' macTableManager='me'/>"), "<bridge macTableManager='me'> is not readable"),
        (
            document("<forward mode='bridge'>\n<interface/></forward>"),
            "line 4: <interface dev=> is missing; expected <interface dev=...>",
        ),
        (
            document("<forward mode='bridge' dev='eth0'>\n<interface dev='eth1'/></forward>"),
            "line 4: <interface dev='eth1'> is not the dev= of <forward>, and is the first of its devices: 'eth0'",
        ),
        (
            document("<forward mode='bridge'><interface dev='a'/>\n<interface dev='a'/></forward>"),
            "line 4: <interface dev='a'> is not allowed",
        ),
        (document("<vlan/>"), "line 3: <vlan> has no <tag>"),
        (
            document("<vlan><tag id='7'/></vlan><bridge name='br0'/>"),
            "line 3: <vlan> is not allowed; expected none: libvirt has VLANs on a bridge that it has not made",
        ),
        (
            document("<portgroup name='a'><vlan><tag id='7'/></vlan></portgroup>"),
            "line 3: <portgroup name='a'> is not allowed; expected none with a <vlan>: libvirt",
        ),
        (document("<virtualport/>"), "line 3: <virtualport type=> is missing"),
        (document("<virtualport type='cisco'/>"), "line 3: <virtualport type='cisco'> is not allowed"),
        (
            document("<virtualport type='openvswitch'>\n<parameters interfaceid=''/></virtualport>"),
            "line 4: <parameters interfaceid=''> is not allowed",
        ),
        (document("<portgroup/>"), "line 3: <portgroup name=> is missing"),
        (document("<portgroup name='a'/>\n<portgroup name='a'/>"), "line 4: <portgroup name='a'> is another group's"),
        (
            document("<portgroup name='a' default='yes'/>\n<portgroup name='b' default='yes'/>"),
            "line 4: <portgroup default='yes'> is another group already; expected one default group",
        ),
        (document("<portgroup name='a'><vlan><tag id='4096'/></vlan></portgroup>"), "line 3: <tag id='4096'>"),
    ],
)
def test_what_is_refused(text, says):
    for strict in (True, False):
        with pytest.raises(SpecError) as caught:
            vhostnet.parse_network(text, strict=strict)
        assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (document("<nic/>"), "line 3: <nic> is no element that libvirt knows here"),
        (document("<bridge name='br0'><port/></bridge>"), "line 3: <port> is no element"),
        (document("<forward><bridge/></forward>"), "line 3: <bridge> is no element"),
        (document("<bridge name='br0' colour='red'/>"), "line 3: <bridge colour='red'> is no attribute"),
        (document("", attributes=" colour='red'"), "line 1: <network colour='red'> is no attribute"),
        (document("<portgroup name='a'><port isolated='yes'/></portgroup>"), "line 3: <port> is no element"),
        (document("<portgroup name='a' colour='red'/>"), "line 3: <portgroup colour='red'> is no attribute"),
        (document("<portgroup name='a'>red</portgroup>"), "line 3: <portgroup>'red' holds text"),
        (document("red"), "line 2: <name>'lab' holds text"),
        (document("", attributes=" trustGuestRxFilters='yes'"), "has no effect: libvirt heeds it for type direct"),
        (document("<portgroup name='a' trustGuestRxFilters='yes'/>"), "line 3: <portgroup trustGuestRxFilters='yes'>"),
        (document("<virtualport type='midonet'><p/></virtualport>"), "line 3: <p> is no element"),
    ],
)
def test_what_libvirt_does_not_know_is_a_warning_or_an_error(text, says):
    with pytest.warns(VhostnetWarning) as caught:
        vhostnet.parse_network(text)
    if "holds text" not in says:
        assert says in str(caught[0].message)
    with pytest.raises(SpecError):
        vhostnet.parse_network(text, strict=True)


@pytest.mark.parametrize(
    ("values", "attribute"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": None}, "name"),
        ({"name": 7}, "name"),
        ({"forward": None}, "forward"),
        ({"forward": "tunnel"}, "forward"),
        ({"bridge": "sixteen_letters_"}, "bridge"),
        ({"bridge": "br0", "forward": "vepa"}, "bridge"),
        ({"mac_table_manager": "libvirt", "forward": "vepa"}, "mac_table_manager"),
        ({"mac_table_manager": "me"}, "mac_table_manager"),
        ({"bridge": "br0", "forward": "bridge", "devices": ("eth0",)}, "devices"),
        ({"devices": ("eth0", "eth0")}, "devices"),
        ({"mtu": 67}, "mtu"),
        ({"mtu": 1500, "forward": "bridge"}, "mtu"),
        ({"isolated": "yes"}, "isolated"),
        ({"vlan": 7}, "vlan"),
        ({"vlan": Vlan((7,))}, "vlan"),
        ({"vlan": Vlan((7,)), "forward": "vepa"}, "vlan"),
        ({"portgroups": (PortGroup(name="a", vlan=Vlan((7,))),)}, "portgroups"),
        ({"virtualport": "openvswitch"}, "virtualport"),
        ({"portgroups": ("a",)}, "portgroups"),
        ({"portgroups": (PortGroup(name="a"), PortGroup(name="a"))}, "portgroups"),
        ({"portgroups": (PortGroup(name="a", default=True), PortGroup(name="b", default=True))}, "portgroups"),
    ],
)
def test_a_network_in_python_is_validated_too(values, attribute):
    with pytest.raises(SpecError) as caught:
        Network(**{"name": "lab", **values})
    assert caught.value.attribute == attribute


# --- what a NIC of it becomes ----------------------------------------------------------------------------


PLAIN = InterfaceSpec(type="network", network="lab", bridge="virbr7", mac=MAC)


@pytest.mark.parametrize(
    ("source", "inside", "expected"),
    [
        ("", "", {"vlan": Vlan((7,)), "isolated": True}),
        ("portgroup=''", "", {"vlan": Vlan((7,)), "isolated": True}),
        ("portgroup='all'", "", {"vlan": Vlan((7,)), "isolated": True}),
        ("portgroup='sales'", "", {"vlan": Vlan((20,)), "isolated": True}),
        ("portgroup='trunk'", "", {"vlan": Vlan((30, 31), trunk=True), "isolated": True}),
        ("portgroup='sales'", "<vlan><tag id='9'/></vlan>", {"vlan": Vlan((9,)), "isolated": True}),
        ("", "<port isolated='no'/>", {"vlan": Vlan((7,))}),
        ("", "<port isolated='yes'/>", {"vlan": Vlan((7,)), "isolated": True}),
        ("", "<mtu size='1300'/>", {"vlan": Vlan((7,)), "isolated": True, "mtu": 1300}),
    ],
)
def test_it_is_what_it_would_be_if_all_were_written_in_it(source, inside, expected):
    assert plugged(OFFICE, f"network='lab' {source}", inside) == dataclasses.replace(PLAIN, **expected)


def test_the_networks_mtu_comes_with_the_bridge():
    """libvirt does not tell the guest of it either: it has no host_mtu."""
    assert plugged(LAB) == dataclasses.replace(PLAIN, mac_table_manager="libvirt", isolated=True)


def test_the_default_group_is_for_those_that_name_none():
    groups = (PortGroup(name="a", vlan=Vlan((3,))), PortGroup(name="b", default=True, vlan=Vlan((4,))))
    network = Network(name="lab", forward="bridge", bridge="br0", portgroups=groups)
    assert plugged(network).vlan == Vlan((4,))
    assert plugged(network, "network='lab' portgroup='a'").vlan == Vlan((3,))


def test_a_vlan_where_libvirt_has_none():
    with pytest.raises(SpecError, match="line 2: <vlan> is not for a NIC of network 'lab': libvirt has VLANs on"):
        plugged(LAB, inside="<vlan><tag id='9'/></vlan>")


def test_a_network_and_the_name_of_a_bridge_are_as_good():
    assert plugged(Network(name="lab", bridge="virbr7")) == plugged(
        "<network><name>x</name><bridge name='virbr7'/></network>"
    )
    assert vhostnet.parse_interface(NIC.format("<source network='lab'/>"), networks={"lab": "virbr7"}) == PLAIN
    assert plugged(Network(name="lab", bridge="virbr7")) == PLAIN


def test_a_running_nic_has_its_groups_settings_already():
    source = "<source network='lab' portgroup='gone' portid='1-2' bridge='virbr7' macTableManager='libvirt'/>"
    text = NIC.format(f"{source}<vlan><tag id='20'/></vlan>")
    expected = dataclasses.replace(PLAIN, vlan=Vlan((20,)), mac_table_manager="libvirt")
    assert vhostnet.parse_interface(text, strict=True) == expected
    assert vhostnet.parse_interface(text, networks={"lab": "virbr7"}, strict=True) == expected


def test_a_running_nic_of_a_bridge_that_is_there_is_of_that_type():
    """As virsh dumpxml has it where the network's forward mode is bridge (libvirt 11.3)."""
    source = "<source network='office' portgroup='sales' portid='6f1d-1' bridge='br0'/>"
    text = NIC.format(f"{source}<vlan><tag id='20'/></vlan>").replace("'network'", "'bridge'")
    assert vhostnet.parse_interface(text, strict=True) == InterfaceSpec(bridge="br0", mac=MAC, vlan=Vlan((20,)))
    with pytest.warns(VhostnetWarning, match="<source network='office'> has no effect"):
        vhostnet.parse_interface(NIC.format("<source network='office' bridge='br0'/>").replace("'network'", "'bridge'"))


def test_a_group_of_a_network_that_has_none_or_is_not_given():
    source = "network='lab' portgroup='eng'"
    with pytest.raises(SpecError) as caught:
        plugged(LAB, source)
    assert str(caught.value) == (
        "line 2: <source portgroup='eng'> is no port group of network 'lab'; expected one of its groups: 'all', 'sales'"
    )
    with pytest.raises(SpecError, match="expected none: it has none"):
        plugged(Network(name="lab", bridge="br0"), source)
    for networks in (None, {"lab": "virbr7"}):
        with pytest.raises(SpecError, match="<source portgroup='eng'> is a group of a network .*--network FILE"):
            vhostnet.parse_interface(NIC.format(f"<source {source}/>"), networks=networks)


OVS = "<virtualport type='openvswitch'/>"
BRIDGED = "<forward mode='bridge'/><bridge name='br0'/>"
MADE = "<bridge name='virbr7'/>"


@pytest.mark.parametrize(
    ("inside", "says"),
    [
        ("", "has no <bridge name=> yet; expected a running network's document: virsh net-dumpxml NETWORK"),
        ("<forward mode='bridge'/>", "has neither a bridge nor a device"),
        (
            "<forward mode='hostdev'><pf dev='eth0'/></forward>",
            "would make a NIC of type hostdev of it (<forward mode='hostdev'>), which is not supported: it is a d",
        ),
        (
            "<forward mode='vepa'><pf dev='eth0'/></forward>",
            "would give it <pf>, which is not supported: name its virtual functions",
        ),
        (
            f"<bridge name='b'/>{OVS}",
            "would give a NIC of type network a virtualport of type openvswitch; expected none",
        ),
        (
            f"{BRIDGED}<virtualport type='802.1Qbh'/>",
            "would give a NIC of type bridge a virtualport of type 802.1Qbh; expected openvswitch",
        ),
        (
            f"<forward mode='private' dev='eth0'/>{OVS}",
            "would give a NIC of type direct a virtualport of type openvswitch; expected 802.1Qbg or 802.1Qbh",
        ),
        (
            f"{BRIDGED}{OVS}<portgroup name='a' default='yes'><virtualport type='midonet'/></portgroup>",
            "and its port group have virtualports that differ in type; expected one of 'openvswitch' and 'midonet'",
        ),
        (
            f"{BRIDGED}<virtualport type='openvswitch'><parameters profileid='red'/></virtualport>"
            "<portgroup name='a' default='yes'>"
            "<virtualport type='openvswitch'><parameters profileid='blue'/></virtualport></portgroup>",
            "and its port group have virtualports that differ in profileid; expected one of 'red' and 'blue'",
        ),
    ],
)
def test_a_network_whose_nics_are_not_ours_is_refused_by_name_where_one_is(inside, says):
    network = vhostnet.parse_network(document(inside), strict=True)
    with pytest.raises(SpecError) as caught:
        plugged(network)
    assert str(caught.value).startswith(f"line 2: <source network='lab'> {says}")


def test_no_name_of_a_group_or_a_profile_spoils_a_message():
    """A soft hyphen, and what has no width, cannot be seen."""
    with pytest.raises(SpecError) as caught:
        plugged(document("<bridge name='b'/><portgroup name='a&#xad;b'/>"), "network='lab' portgroup='a&#x200b;b'")
    assert str(caught.value).isprintable()
    ports = (f"<virtualport type='openvswitch'><parameters profileid='a{c}'/></virtualport>" for c in ("", "&#x200b;"))
    one, other = ports
    with pytest.raises(SpecError, match="differ in profileid") as caught:
        plugged(document(f"{BRIDGED}{one}<portgroup name='a' default='yes'>{other}</portgroup>"))
    assert str(caught.value).isprintable()


def test_virtualports_are_merged():
    one = PortProfile("openvswitch", (("profileid", "red"),))
    other = PortProfile("openvswitch", (("interfaceid", "1"), ("profileid", "red")))
    assert one.merged(other) == other.merged(one) == other


PORT_ID = "0b5e3f21-1c9d-4c7a-9b5a-3f2e1d0c9b8a"
TENANT = "<virtualport type='openvswitch'><parameters profileid='tenant'/></virtualport>"


def test_a_nic_has_its_own_virtualport_and_its_networks_in_one():
    own = f"<virtualport><parameters interfaceid='{PORT_ID}'/></virtualport>"
    port = plugged(document(f"{BRIDGED}{TENANT}"), inside=own).virtualport
    assert (port.interfaceid, port.profileid) == (PORT_ID, "tenant")
    groups = f"<portgroup name='a' default='yes'>{OVS}</portgroup>"
    port = plugged(document(f"{BRIDGED}{groups}"), inside=own).virtualport
    assert (port.interfaceid, port.profileid) == (PORT_ID, None)
    assert plugged(document(BRIDGED), inside=TENANT).virtualport.profileid == "tenant"
    assert plugged(document(f"{BRIDGED}{TENANT}"), inside="<virtualport/>").virtualport.profileid == "tenant"


def test_a_group_may_leave_the_type_to_its_network():
    """As libvirt has it, and a network may not."""
    loose = "<portgroup name='a' default='yes'><virtualport><parameters profileid='loose'/></virtualport></portgroup>"
    port = plugged(document(f"{BRIDGED}<virtualport type='openvswitch'/>{loose}")).virtualport
    assert port.profileid == "loose"
    assert plugged(document(f"{BRIDGED}{loose}"), inside=OVS).virtualport.profileid == "loose"
    nothing = "<portgroup name='a' default='yes'><virtualport><parameters/></virtualport></portgroup>"
    assert plugged(document(f"{BRIDGED}{nothing}")).virtualport is None
    with pytest.raises(
        SpecError, match="<source network='lab'> would give a NIC of type bridge a virtualport of no type"
    ):
        plugged(document(f"{BRIDGED}{loose}"))
    with pytest.raises(SpecError, match="line 3: <virtualport type=> is missing; expected openvswitch or"):
        vhostnet.parse_network(document("<virtualport><parameters profileid='loose'/></virtualport>"))


@pytest.mark.parametrize(
    ("network", "own", "says"),
    [
        (
            f"{BRIDGED}{TENANT}",
            "<virtualport type='openvswitch'><parameters profileid='mine'/></virtualport>",
            "<virtualport> is another than that of network 'lab': they differ in profileid; "
            "expected one of 'mine' and 'tenant'",
        ),
        (
            f"{BRIDGED}{TENANT}",
            "<virtualport type='midonet'/>",
            "<virtualport> is another than that of network 'lab': they differ in type",
        ),
        ("<bridge name='b'/>", OVS, "<source network='lab'> would give a NIC of type network a virtualport"),
        (
            f"{BRIDGED}{TENANT}",
            "<virtualport><parameters managerid='11'/></virtualport>",
            "<virtualport> has parameters that are not for type openvswitch",
        ),
        (
            BRIDGED,
            "<virtualport><parameters profileid='mine'/></virtualport>",
            "<virtualport type=> is missing, and no network says it; expected openvswitch",
        ),
    ],
)
def test_a_virtualport_that_is_not_its_networks(network, own, says):
    with pytest.raises(SpecError) as caught:
        plugged(document(network), inside=own)
    assert str(caught.value).startswith(f"line 2: {says}")


# --- devices of the host's -------------------------------------------------------------------------------


def pool(mode, *devices):
    every = "".join(f"<interface dev='{device}'/>" for device in devices)
    return vhostnet.parse_network(document(f"<forward mode='{mode}'>{every}</forward>"), strict=True)


def on(network, count):
    """The devices that so many NICs of one domain are on."""
    nics = NIC.format("<source network='lab'/>") * count
    domain = f"<domain type='kvm'><devices>{nics}</devices></domain>"
    return [spec.source.dev for spec in vhostnet.parse_domain(domain, networks={"lab": network}, strict=True)]


@pytest.mark.parametrize("mode", ["bridge", "private", "vepa"])
def test_nics_of_a_pool_are_spread_over_its_devices(mode):
    assert on(pool(mode, "eth0", "eth1"), 5) == ["eth0", "eth1", "eth0", "eth1", "eth0"]
    assert plugged(pool(mode, "eth0", "eth1")).source == DirectSource("eth0", mode)


def test_a_device_is_passed_through_once():
    assert on(pool("passthrough", "eth0", "eth1"), 2) == ["eth0", "eth1"]
    with pytest.raises(SpecError, match="has a device for each of its NICs, and no more; expected 2 NICs of it"):
        on(pool("passthrough", "eth0", "eth1"), 3)


# What the NIC says of it counts before its group's, and that before the network's.
@pytest.mark.parametrize(
    ("own", "groups", "networks", "trusted"),
    [
        ("", "", "", False),
        ("", "", "yes", True),
        ("", "yes", "", True),
        ("", "no", "yes", False),
        ("yes", "no", "no", True),
        ("no", "yes", "yes", False),
    ],
)
def test_the_guests_of_a_pool_are_trusted_or_not(own, groups, networks, trusted):
    own, groups, networks = (word and f" trustGuestRxFilters='{word}'" for word in (own, groups, networks))
    parts = f"<forward mode='vepa' dev='eth0'/><portgroup name='a' default='yes'{groups}/>"
    network = vhostnet.parse_network(document(parts, attributes=networks), strict=True)
    text = NIC.format("<source network='lab'/>").replace("<interface", f"<interface{own}", 1)
    spec = vhostnet.parse_interface(text, networks={"lab": network}, strict=True)
    assert spec.source == DirectSource("eth0", trust_guest_rx_filters=trusted)


def test_nobody_is_trusted_on_a_bridge():
    text = NIC.format("<source network='lab'/>").replace("<interface", "<interface trustGuestRxFilters='yes'", 1)
    with pytest.raises(SpecError, match="^line 1: <interface trustGuestRxFilters='yes'> has no effect: .* direct"):
        vhostnet.parse_interface(text, networks={"lab": "br0"}, strict=True)


def test_a_nic_of_a_pool_has_what_a_macvtap_has():
    limit = "<bandwidth><outbound average='9'/></bandwidth>"
    network = pool("bridge", "eth0")
    assert plugged(network, inside=limit).bandwidth == Bandwidth(None, Rate(9))
    for setting in ("<mtu size='1400'/>", "<port isolated='yes'/>", "<vlan><tag id='4'/></vlan>"):
        with pytest.raises(SpecError, match="^line 2: <"):
            plugged(network, inside=setting)


def test_what_a_group_allows_its_nics_counts_where_they_say_nothing():
    group = "<portgroup name='a' default='yes'><bandwidth><outbound average='9'/></bandwidth></portgroup>"
    assert plugged(document(f"{MADE}{group}")).bandwidth == Bandwidth(None, Rate(9))
    own = "<bandwidth><inbound average='7'/></bandwidth>"
    assert plugged(document(f"{MADE}{group}"), inside=own).bandwidth == Bandwidth(Rate(7))


LIMIT = "<bandwidth><inbound average='9'/></bandwidth>"
OF_DEVICES = ["<forward mode='vepa' dev='eth0'/>", "<forward mode='bridge' dev='eth0'/>", "<forward mode='hostdev'/>"]


@pytest.mark.parametrize("within", [BRIDGED, *OF_DEVICES])
def test_a_networks_bandwidth_is_of_a_bridge_that_libvirt_makes(within):
    with pytest.raises(
        SpecError, match="^line 4: <bandwidth> is not for such a network; expected none: libvirt shapes"
    ):
        vhostnet.parse_network(document(f"{within}\n{LIMIT}"))
    assert vhostnet.parse_network(document(f"{within}<bandwidth/>"), strict=True)
    assert vhostnet.parse_network(document(f"{MADE}{LIMIT}"), strict=True)


@pytest.mark.parametrize("within", OF_DEVICES)
def test_a_groups_bandwidth_is_of_a_bridge(within):
    with pytest.raises(SpecError, match="^line 4: <portgroup name='a'> is not allowed; expected none with a <band"):
        vhostnet.parse_network(document(f"{within}\n<portgroup name='a'>{LIMIT}</portgroup>"))
    assert vhostnet.parse_network(document(f"{within}<portgroup name='a'><bandwidth/></portgroup>"), strict=True)
    assert vhostnet.parse_network(document(f"{BRIDGED}<portgroup name='a'>{LIMIT}</portgroup>"), strict=True)
