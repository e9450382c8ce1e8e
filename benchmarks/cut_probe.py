"""How long nothing gets through between two hosts: a datagram each millisecond, both ways.

    ip netns exec A python benchmarks/cut_probe.py ADDRESS SECONDS

Run at both ends at once, each with the other's address. Says `ready`, waits for a line, sends for
so long, and then tells in milliseconds the longest time between two datagrams that came with
some lost between them; 0: none was lost. Times are the kernel's of each arrival: what counts is
when a datagram came, not when this process was let look. `ping` does not serve: while nothing
answers it asks every 10 ms only.
"""

import socket
import struct
import sys
import time
from itertools import pairwise

PORT = 7199
INTERVAL_S = 0.001
TAIL_S = 0.2  # the ends do not begin at the same instant
KEPT_BYTES = 64 * 2**20
SO_RCVBUFFORCE, SO_TIMESTAMPNS = 33, 35
FORM = struct.Struct(">Q")


def opened() -> socket.socket:
    """Return the socket that sends and, by the kernel alone, takes what comes."""
    raw = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, KEPT_BYTES)
    raw.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    raw.bind(("0.0.0.0", PORT))
    raw.setblocking(False)  # noqa: FBT003 - the socket module's own signature
    return raw


def send(raw: socket.socket, address: str, for_s: float) -> int:
    """Send until the time is over; return how many were sent."""
    begun_s = time.monotonic()
    for number in range(int(for_s / INTERVAL_S)):
        time.sleep(max(0.0, begun_s + number * INTERVAL_S - time.monotonic()))
        try:
            raw.sendto(FORM.pack(number), (address, PORT))
        except OSError:
            continue  # no way there now: lost
    return number + 1


def arrivals(raw: socket.socket) -> list[tuple[float, int]]:
    """Return when each datagram came, and its number."""
    found = []
    while True:
        try:
            data, told, _flags, _address = raw.recvmsg(FORM.size, 64)
        except BlockingIOError:
            return found
        seconds, nanoseconds = struct.unpack("qq", told[0][2][:16])
        found.append((seconds + nanoseconds / 1e9, FORM.unpack(data)[0]))


def longest_gap_ms(heard: list[tuple[float, int]], sent: int, ended_s: float) -> float:
    """Return the longest time between two that came, of those with some lost between them."""
    pairs = list(pairwise(heard))
    gaps = [after[0] - before[0] for before, after in pairs if after[1] > before[1] + 1]
    if not heard or heard[-1][1] < sent - TAIL_S / INTERVAL_S:  # silent to the end
        gaps.append(ended_s - heard[-1][0] if heard else sent * INTERVAL_S)
    return max(gaps, default=0.0) * 1000


def main() -> None:
    address, for_s = sys.argv[1], float(sys.argv[2])
    raw = opened()
    print("ready", flush=True)
    sys.stdin.readline()
    sent = send(raw, address, for_s)
    ended_s = time.time()
    print(f"{longest_gap_ms(arrivals(raw), sent, ended_s):.1f}", flush=True)


if __name__ == "__main__":
    main()
