#!/bin/sh
# Print one line a second on the console: what a live migration must not break.
count=0
while :; do
  count=$((count + 1))
  echo "nuage-guest $(hostname) beat $count uptime $(cut -d' ' -f1 /proc/uptime)" >/dev/ttyS0
  sleep 1
done
