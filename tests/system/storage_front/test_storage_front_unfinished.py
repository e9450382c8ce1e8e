"""`kill -9` in the midst of what is asked at the control socket: it is whole or was never begun."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.system.storage_front.storage_front_daemon import IQN, MIB, Daemon, Json

pytestmark = pytest.mark.system
STEPS = 12  # kills, each a little sooner after one that came too late, else a little later
SOONER, LATER = 0.5, 1.5
SIZE_BYTES, GROWN_BYTES = 16 * MIB, 32 * MIB
KEY = "5a" * 32


def create(volume: str) -> Json:
    return {
        "op": "create_volume", "volume": volume, "size_bytes": SIZE_BYTES,
        "logical_block_bytes": 512, "encrypted": True, "uuid": "0a" * 16,
    }  # fmt: skip


def clone(volume: str) -> Json:
    moment = {"sequence": 1}
    return {"op": "clone", "volume": "parent", "moment": moment, "clone": volume, "uuid": "0b" * 16}


def resize(volume: str) -> Json:
    return {"op": "resize", "volume": volume, "size_bytes": GROWN_BYTES}


def delete(volume: str) -> Json:
    return {"op": "delete_volume", "volume": volume}


def ask(daemon: Daemon, asked: Json) -> Json:
    words = {key: value for key, value in asked.items() if key != "op"}
    return daemon.ask(str(asked["op"]), **words)


def open_head(daemon: Daemon, volume: str, epoch: int) -> None:
    daemon.ask("open_head", volume=volume, epoch=epoch, iqn=f"{IQN}.{volume}")


def made(daemon: Daemon) -> dict[str, int]:
    """Return the volumes that the daemon has, and their sizes."""
    volumes = daemon.ask("list")["volumes"]
    assert isinstance(volumes, list)
    return {str(volume["volume"]): int(volume["size_bytes"]) for volume in volumes}


def lie(daemon: Daemon) -> set[str]:
    """Return the volumes of which anything lies on a disk."""
    roots = (daemon.folder / "data" / "volumes", daemon.folder / "large" / "volumes")
    return {path.name.partition("~")[0] for root in roots for path in root.iterdir()}


@pytest.fixture
def daemon(storaged_binary: Path, daemons: Callable[[str], Daemon]) -> Daemon:
    made = daemons("one")
    made.stop()
    made.more = ["--base", str(made.folder / "large")]
    made.start()
    made.ask("set_key", key=KEY)
    ask(made, {**create("parent"), "uuid": "0c" * 16})
    open_head(made, "parent", 1)
    made.ask("write", volume="parent", offset=0, data="07" * 65536)
    made.ask("flush", volume="parent")
    return made


def killed(daemon: Daemon, asked: Json, after_s: float) -> None:
    """Ask for an act and kill the daemon a little later; it comes back."""
    words = {key: value for key, value in asked.items() if key != "op"}
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGSTOP)  # it works on it no sooner than the time counts
    daemon.begin(str(asked["op"]), **words)
    daemon.process.send_signal(signal.SIGCONT)
    time.sleep(after_s)  # noqa: TID251 - a real process works meanwhile
    daemon.kill()
    daemon.start()
    daemon.ask("set_key", key=KEY)


@pytest.mark.parametrize("act", [create, clone, resize, delete])
def test_what_a_kill_breaks_off_is_whole_or_was_never_begun(
    daemon: Daemon, act: Callable[[str], Json]
) -> None:
    wanted = None if act is delete else GROWN_BYTES if act is resize else SIZE_BYTES
    finished: set[bool] = set()
    after_s = 0.0
    for step in range(STEPS + 1):
        volume = f"v{step}"
        if act in (resize, delete):
            ask(daemon, create(volume))
        if act is resize:
            open_head(daemon, volume, 1)
        if step == 0:
            begun_s = time.monotonic()
            ask(daemon, act(volume))
            after_s = time.monotonic() - begun_s
        else:
            killed(daemon, act(volume), after_s)
        sizes = made(daemon)
        assert lie(daemon) == set(sizes), "what lies there is what is told, and nothing beside"
        if step:
            finished.add(sizes.get(volume) == wanted)
            after_s *= SOONER if sizes.get(volume) == wanted else LATER
        if act is resize and step:
            open_head(daemon, volume, 2)
        ask(daemon, act(volume))  # asked again it leads to what was wanted
        assert made(daemon).get(volume) == wanted
        if act is not delete:
            if act is not resize:
                open_head(daemon, volume, 3)
            daemon.ask("close_head", volume=volume)
            ask(daemon, delete(volume))
        assert lie(daemon) == {"parent"}
    assert True in finished, "some were not broken off before it counted"
    if act is not delete:  # whose first step counts, and a kill seldom comes before it
        assert False in finished, "some were"
