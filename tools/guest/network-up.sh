#!/bin/sh
# Raise each interface as the config drive's network-config says (cloud-init version 2, as Nuage
# writes it: one key a line); without one, ask by DHCP on every interface, in the background when
# nobody answers at once.
config=$1
dhcp() {
  ip link set "$1" up
  udhcpc -i "$1" -b -t 3 -T 1 -A 5 -s /etc/udhcpc.script -x "hostname:$(hostname)" >/dev/null 2>&1
}
plan=/tmp/network-plan
: >$plan
[ -r "$config" ] && awk '
  function unquote(text) { gsub(/["'"'"']/, "", text); return text }
  $1 == "macaddress:" { mac = tolower(unquote($2)) }
  $1 == "mtu:"        { print mac, "mtu", $2 }
  $1 == "dhcp4:" && $2 == "true" { print mac, "dhcp" }
  $1 == "addresses:"  { where = nameservers ? "dns" : "address" }
  $1 == "nameservers:" { nameservers = 1 }
  $1 == "match:"      { nameservers = 0 }
  $1 == "routes:"     { where = "route" }
  $1 == "-" && $2 !~ /:$/ { print mac, where, unquote($2) }
  $1 == "via:"        { print mac, "gateway", unquote($2) }
  $1 == "gateway4:"   { print mac, "gateway", unquote($2) }
' "$config" >$plan
for path in /sys/class/net/*; do
  device=${path##*/}
  [ "$device" = lo ] && continue
  mac=$(cat "$path/address")
  if ! grep -q "^$mac " $plan; then
    [ -s $plan ] || dhcp "$device"
    continue
  fi
  grep "^$mac " $plan | while read -r _ verb value; do
    case $verb in
      mtu) ip link set "$device" mtu "$value" ;;
      dhcp) dhcp "$device" ;;
      address) ip addr add "$value" dev "$device"; ip link set "$device" up ;;
      gateway) ip route replace default via "$value" dev "$device" ;;
      dns) echo "nameserver $value" >>/etc/resolv.conf ;;
    esac
  done
done
exit 0
