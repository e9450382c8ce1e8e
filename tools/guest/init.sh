#!/bin/busybox sh
# First process of the Nuage test guest. Reads its config drive, raises its network, says on the
# serial console that it is ready, then hands over to busybox init (shell on ttyS0, power button).
B=/bin/busybox
$B mount -t devtmpfs devtmpfs /dev
$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
exec </dev/ttyS0 >/dev/ttyS0 2>&1
echo "nuage-guest booting"
$B --install -s /bin
export PATH=/bin HOME=/root

# Modules in the order their dependencies ask for (written by build.py).
while read -r module; do insmod "/lib/modules/$module" 2>/dev/null; done </lib/modules/early
(while read -r module; do insmod "/lib/modules/$module" 2>/dev/null; done </lib/modules/late) &

# The config drive is the block device whose ISO 9660 volume label is cidata (NoCloud) or
# config-2 (OpenStack); the label stands 40 bytes into sector 16.
for device in /dev/vd? /dev/sd? /dev/sr?; do
  [ -b "$device" ] || continue
  label=$(dd if="$device" bs=1 skip=32808 count=8 2>/dev/null | tr 'A-Z' 'a-z' | tr -d ' \0')
  case "$label" in
    cidata) mount -t iso9660 -o ro "$device" /config && seed=/config && break ;;
    config-2) mount -t iso9660 -o ro "$device" /config && seed=/config/openstack/latest && break ;;
  esac
done

name=nuage-guest
if [ -n "$seed" ]; then
  found=$(sed -n 's/^local-hostname: *"\{0,1\}\([A-Za-z0-9.-]*\).*/\1/p' "$seed/meta-data" 2>/dev/null)
  [ -n "$found" ] || found=$(sed -n 's/.*"hostname": *"\([^"]*\)".*/\1/p' "$seed/meta_data.json" 2>/dev/null)
  [ -n "$found" ] && name=$found
  sed -n 's/^ *- *"\{0,1\}\(\(ssh\|ecdsa\|sk\)-[^"]*\).*/\1/p' "$seed/meta-data" >/root/.ssh/authorized_keys 2>/dev/null
fi
hostname "$name"
echo "127.0.0.1 localhost $name" >/etc/hosts

mount -t ext4 -o noatime /dev/vda2 /data 2>/dev/null

ip link set lo up
/etc/network-up "$seed/network-config"
httpd -h /www -p 80 2>/dev/null
address=$(ip -4 -o addr show scope global 2>/dev/null | awk '{print $4; exit}')
keys=$(grep -c . /root/.ssh/authorized_keys 2>/dev/null)
echo "$name ${address:-none}" >/www/index.html
echo "nuage-guest $name ready ${address:-none} uptime $(cut -d' ' -f1 /proc/uptime) keys ${keys:-0}"
/etc/user-data-run "$seed" &
exec /bin/init
