#!/bin/sh
echo "nuage-guest powering off" >/dev/ttyS0
exec /bin/poweroff
