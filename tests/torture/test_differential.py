"""Random acts on a door and on a plain file, from many seeds (`NUAGE_SEEDS`), kills in between."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.system.storage_front import differential
from tests.system.storage_front.storage_front_daemon import IQN, Daemon, need

SEEDS = max(1, int(os.environ.get("NUAGE_SEEDS", "2000")) // 100)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("door", ["nbd", "iscsi"])
def test_many_random_acts_read_back_as_from_a_file(
    daemons: Callable[[str], Daemon], tmp_path: Path, door: str
) -> None:
    need("qemu-io")
    daemon = daemons("one")
    differential.serve(daemon)
    for seed in range(SEEDS):
        differential.verify(daemon, door, tmp_path, seed=seed, count=1000)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("door", ["nbd", "iscsi"])
def test_a_log_of_all_writes_makes_the_volume_again_after_each_of_many_kills(
    daemons: Callable[[str], Daemon], tmp_path: Path, door: str
) -> None:
    need("qemu-io")
    daemon = daemons("one")
    differential.serve(daemon)
    for seed in range(SEEDS):
        log, back = tmp_path / "log", tmp_path / "back"
        differential.log_writes(daemon, door, log, seed=seed, count=500)
        daemon.kill()
        daemon.start()
        daemon.ask("open_head", volume="v", epoch=seed + 2, nbd="v", iqn=IQN)
        url = f"nbd://127.0.0.1:{daemon.nbd}/v"
        command = ["qemu-img", "convert", "-f", "raw", "-O", "raw", url, str(back)]
        subprocess.run(command, check=True, timeout=120)
        assert back.read_bytes() == differential.replayed(log), seed
        log.unlink()
        back.unlink()
