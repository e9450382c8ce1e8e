"""What a daemon holds of the machine's memory."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.system.storage_front.storage_front_daemon import MIB, Daemon, need
from tests.system.storage_front.test_storage_front_control import serve, works

pytestmark = pytest.mark.system

# A small index and the code that was needed; the log alone is 20 MiB.
HELD_BYTES_MAX = 6 * MIB


def resident_bytes(daemon: Daemon) -> int:
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def test_what_opening_a_volume_took_is_given_back_at_once(
    daemons: Callable[[str], Daemon],
) -> None:
    """A log that was not closed in order is read whole."""
    need("qemu-img")
    daemon = daemons("one")
    serve(daemon, nbd="v", ack="memory")
    url = f"nbd://127.0.0.1:{daemon.nbd}/v"
    writes = ["qemu-img", "bench", "-f", "raw", "-w", "-c", "5000", "-d", "16", "-S", "28672", url]
    subprocess.run(writes, check=True, stdout=subprocess.DEVNULL)
    daemon.kill()
    daemon.start()
    idle_bytes = resident_bytes(daemon)
    daemon.ask("open_head", volume="v", epoch=2, nbd="v")
    works(url, "read 0 4k")
    held_bytes = resident_bytes(daemon) - idle_bytes
    assert held_bytes < HELD_BYTES_MAX
