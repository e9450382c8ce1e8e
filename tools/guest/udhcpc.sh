#!/bin/sh
# Apply a DHCP lease (called by busybox udhcpc with the answer in the environment).
case "$1" in
  deconfig) ip addr flush dev "$interface"; ip link set "$interface" up ;;
  bound|renew)
    ip addr replace "$ip/${mask:-24}" dev "$interface"
    [ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
    for gateway in $router; do ip route replace default via "$gateway" dev "$interface"; break; done
    : >/etc/resolv.conf
    for server in $dns; do echo "nameserver $server" >>/etc/resolv.conf; done
    echo "$(hostname) $ip" >/www/index.html
    echo "nuage-guest $(hostname) leased $ip" >/dev/ttyS0 ;;
esac
