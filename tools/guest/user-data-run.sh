#!/bin/sh
# Run the config drive's user-data when it is a script; note anything else.
seed=$1
for file in "$seed/user-data" "$seed/user_data"; do
  [ -s "$file" ] || continue
  case "$(head -c 2 "$file")" in
    '#!')
      cp "$file" /tmp/user-data && chmod 700 /tmp/user-data
      cd /root && /tmp/user-data >/dev/ttyS0 2>&1
      echo "nuage-guest user-data ended with $?" >/dev/ttyS0 ;;
    *) echo "nuage-guest user-data is no script, left unread" >/dev/ttyS0 ;;
  esac
done
