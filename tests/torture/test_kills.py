"""Hundreds of kills under load: every answered write is there, and no client saw the impossible.

`NUAGE_KILLS` says how many in each way, `NUAGE_KILL_SEED` where it begins.
"""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.system.storage_front.kills import Kills
from tests.system.storage_front.storage_front_daemon import Daemon, need

KILLS = int(os.environ.get("NUAGE_KILLS", "300"))
SEED = int(os.environ.get("NUAGE_KILL_SEED", "1"))


@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("ack", ["durable", "memory"])
def test_what_was_answered_outlives_hundreds_of_kills(three_sites: list[Daemon], ack: str) -> None:
    kills = Kills(three_sites, SEED, ack)
    try:
        while kills.kills < KILLS:
            if ack == "durable":
                kills.durable_round()
            else:
                kills.memory_round()
        kills.require_one_chain()
    finally:
        kills.end()


@contextmanager
def reconnecting(head: Path, door: Path) -> Iterator[None]:
    """Serve at `door` what is behind `head`, a link to an NBD socket, however often it breaks."""
    nbd = f"driver=nbd,node-name=f,server.type=unix,server.path={head},export=f"
    command = ["qemu-storage-daemon", "--blockdev", f"{nbd},reconnect-delay=600"]
    command += ["--nbd-server", f"addr.type=unix,addr.path={door}"]
    command += ["--export", "type=nbd,id=e,node-name=f,name=f,writable=on"]
    process = subprocess.Popen(command)
    try:
        while not door.exists():
            assert process.poll() is None
            time.sleep(0.02)  # noqa: TID251 - a real process comes up
        yield
    finally:
        process.kill()
        process.wait()


class Fio(threading.Thread):
    """Writes the volume at random and verifies all of it, again and again, until told to end."""

    def __init__(self, door: Path, folder: Path) -> None:
        super().__init__()
        self.rounds = 0
        self.failure = ""
        self.ended = threading.Event()
        self._command = [
            "fio", "--name=f", "--ioengine=nbd", f"--uri=nbd+unix:///f?socket={door}",
            "--rw=randwrite", "--bsrange=4k-64k", "--size=16M", "--iodepth=8", "--fsync=64",
            "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", f"--aux-path={folder}",
        ]  # fmt: skip

    def run(self) -> None:
        while not self.ended.is_set() and not self.failure:
            command = [*self._command, f"--randseed={self.rounds + SEED}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                self.failure = done.stdout[-2000:] + done.stderr[-2000:]
            else:
                self.rounds += 1


@pytest.mark.timeout(4 * 3600)
def test_fio_verifies_all_it_wrote_through_hundreds_of_kills(
    three_sites: list[Daemon], tmp_path: Path
) -> None:
    need("fio")
    need("qemu-storage-daemon")
    kills = Kills(three_sites, SEED + 1, "durable", more=("f",))
    kills.stands_still = False
    head, door = tmp_path / "head", tmp_path / "door"
    kills.on_lead.append(head)
    try:
        kills.lead()
        kills.until_well()
        with reconnecting(head, door):
            fio = Fio(door, tmp_path)
            fio.start()
            while kills.kills < KILLS and not fio.failure:
                kills.durable_round()
            kills.until_well()
            fio.ended.set()
            fio.join()
        assert not fio.failure, fio.failure + kills.told()
        assert fio.rounds > 0
    finally:
        kills.end()
