"""What a daemon holds of the machine's memory."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.system.storage_front.storage_front_daemon import Daemon, need
from tests.system.storage_front.test_storage_front_control import serve, works

pytestmark = pytest.mark.system

GIVEN_BACK_WITHIN_S = 90.0


def resident_bytes(daemon: Daemon) -> int:
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def test_what_opening_a_volume_took_is_given_back(daemons: Callable[[str], Daemon]) -> None:
    """A log that was not closed in order is read whole; the daemon then rests."""
    need("qemu-img")
    daemon = daemons("one")
    serve(daemon, nbd="v", ack="memory")
    url = f"nbd://127.0.0.1:{daemon.nbd}/v"
    writes = ["qemu-img", "bench", "-f", "raw", "-w", "-c", "5000", "-d", "16", "-S", "28672", url]
    subprocess.run(writes, check=True, stdout=subprocess.DEVNULL)
    daemon.kill()
    daemon.start()
    daemon.ask("open_head", volume="v", epoch=2, nbd="v")
    works(url, "read 0 4k")
    opened_bytes = resident_bytes(daemon)
    deadline_s = time.monotonic() + GIVEN_BACK_WITHIN_S
    while resident_bytes(daemon) > opened_bytes * 2 // 3:
        assert time.monotonic() < deadline_s, (opened_bytes, resident_bytes(daemon))
        time.sleep(0.2)  # noqa: TID251 - a real process rests
