#!/bin/busybox sh
# First process of the initiator's guest. Takes lines of shell from the second serial port, and answers
# each with what it printed, a new line, and a last line "==end STATUS".
B=/bin/busybox
$B mount -t devtmpfs devtmpfs /dev
$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
$B --install -s /bin
export PATH=/sbin:/bin HOME=/
while read -r module; do insmod "/modules/$module"; done </modules/order
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
echo "InitiatorName=iqn.2015-01.fr.nuage:host" >/etc/iscsi/initiatorname.iscsi
iscsid
stty -F /dev/ttyS1 raw -echo
exec </dev/ttyS1 >/dev/ttyS1 2>&1
echo "==ready"
while read -r line; do
  (eval "$line") 2>&1
  printf '\n==end %s\n' $?
done
poweroff -f
