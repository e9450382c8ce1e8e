"""Random acts on a door and on a plain file come to the same; long runs are `make torture`'s."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.system.storage_front import differential
from tests.system.storage_front.storage_front_daemon import Daemon, need

pytestmark = pytest.mark.system


@pytest.mark.parametrize("door", ["nbd", "iscsi"])
def test_random_acts_read_back_as_from_a_file(
    daemons: Callable[[str], Daemon], tmp_path: Path, door: str
) -> None:
    need("qemu-io")
    daemon = daemons("one")
    differential.serve(daemon)
    differential.verify(daemon, door, tmp_path, seed=1, count=150)


@pytest.mark.parametrize("door", ["nbd", "iscsi"])
def test_a_log_of_all_writes_makes_the_volume_again_also_after_a_kill(
    daemons: Callable[[str], Daemon], tmp_path: Path, door: str
) -> None:
    """The last act is a flush: nothing that the log has may be missing after a crash."""
    need("qemu-io")
    daemon = daemons("one")
    differential.serve(daemon)
    log = tmp_path / "log"
    differential.log_writes(daemon, door, log, seed=2, count=100)
    daemon.kill()
    daemon.start()
    daemon.ask("open_head", volume="v", epoch=2, nbd="v", ack="memory")
    back = tmp_path / "back"
    command = ["qemu-img", "convert", "-f", "raw", "-O", "raw", f"nbd://127.0.0.1:{daemon.nbd}/v"]
    subprocess.run([*command, str(back)], check=True, timeout=120)
    assert back.read_bytes() == differential.replayed(log)
