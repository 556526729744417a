import vhostnet, subprocess, time, sys, os
def sh(c): print('$',c); print(subprocess.run(c,shell=True,capture_output=True,text=True).stdout.rstrip())
sh('ip link add br0 up type bridge; ip link add v0 type veth peer name w0; ip link set v0 up master br0; ip link set w0 up; udevadm settle; sleep 1')
sh('ip -br link')
nics=vhostnet.open_nics([vhostnet.InterfaceSpec(bridge='br0',vhost='off') for _ in range(4)])
time.sleep(float(sys.argv[1]))
sh('ip -br link; ip -d -o link show type tun | cut -c1-200; ip -br addr')
for n in nics:
    for f in (f'/run/systemd/netif/links/{n.ifindex}',f'/run/NetworkManager/devices/{n.ifindex}',f'/run/udev/data/n{n.ifindex}'):
        sh(f'cat {f}')
    break
sh('nmcli device; cat /run/NetworkManager/devices/2')
sh('networkctl --no-pager')
sh('cat /run/log/networkd | tail -5; ls /run/udev /run/systemd/netif; ls -la /run/udev/queue; cat /proc/net/netlink | head -30')
