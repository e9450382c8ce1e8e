"""Two copies of one volume on two disks of a node: one was made while the other's was away."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.system.storage_front.storage_front_daemon import MIB, Daemon, Refused
from tests.system.storage_front.test_storage_front_control import works
from tests.system.storage_front.test_storage_front_scrub import lead, nbd, until

pytestmark = pytest.mark.system

UUID = "0123456789abcdef0123456789abcdef"


def disk(daemon: Daemon, name: str) -> Path:
    return daemon.folder / f"disk-{name}"


def give_disks(daemon: Daemon) -> None:
    """Start a daemon again with two more disks."""
    daemon.kill()
    for name in "ab":
        daemon.more += ["--disk", f"{name}={disk(daemon, name)}"]
    daemon.start()


def make(daemon: Daemon, on: str, **more: object) -> None:
    daemon.ask("create_replica", volume="v", size_bytes=64 * MIB, uuid=UUID, disk=on, **more)


def restart_without(daemon: Daemon, name: str) -> None:
    daemon.kill()
    disk(daemon, name).rename(disk(daemon, "away"))
    daemon.start()


def restart_with(daemon: Daemon, name: str) -> None:
    daemon.kill()
    shutil.rmtree(disk(daemon, name))
    disk(daemon, "away").rename(disk(daemon, name))
    daemon.start()


def sequence(daemon: Daemon) -> object:
    """Return up to where a copy is durable; nobody may have asked for it yet."""
    status = daemon.ask("status", volume="v")
    kept = status["head"] or status.get("copy") or {}
    assert isinstance(kept, dict)
    return kept.get("durable_sequence")


def is_whole(daemon: Daemon) -> bool:
    """Tell whether a head has said that a copy which was made anew has everything."""
    kept = daemon.ask("status", volume="v").get("copy")
    return isinstance(kept, dict) and kept["whole"] is True


def retired(daemon: Daemon) -> list[str]:
    rows = daemon.ask("status", volume="v").get("retired", [])
    assert isinstance(rows, list)
    return [row["disk"] for row in rows]


def test_the_copy_with_the_data_goes_on_and_not_the_empty_one_that_was_made_meanwhile(
    daemons: Callable[[str], Daemon],
) -> None:
    daemon = daemons("one")
    give_disks(daemon)
    make(daemon, "a")
    daemon.ask("open_head", volume="v", epoch=1, policy="local", nbd="v")
    works(nbd(daemon), "write -P 7 1M 16k", "flush")
    restart_without(daemon, "a")
    make(daemon, "b", joins=True, epoch=3)
    restart_with(daemon, "a")
    assert daemon.ask("status", volume="v")["disk"] == "a"
    assert retired(daemon) == ["b"]
    with pytest.raises(Refused, match="stale_epoch"):  # the empty one had promised that
        daemon.ask("open_head", volume="v", epoch=2, policy="local", nbd="v")
    daemon.ask("open_head", volume="v", epoch=3, policy="local", nbd="v")
    works(nbd(daemon), "read -P 7 1M 16k")
    until(lambda: retired(daemon) == [])
    assert list((disk(daemon, "b") / "retired").iterdir()) == []


def test_a_copy_that_was_filled_anew_goes_on_and_the_former_one_stays_until_it_is_proven(
    three_sites: list[Daemon],
) -> None:
    copy = three_sites[1]
    give_disks(copy)
    for daemon in three_sites:
        make(daemon, "b" if daemon is copy else "")
    lead(three_sites)
    works(nbd(three_sites[0]), "write -P 7 1M 16k", "flush")
    until(lambda: sequence(copy) == sequence(three_sites[0]) != 0)
    restart_without(copy, "b")
    make(copy, "a", joins=True, epoch=1)
    works(nbd(three_sites[0]), "write -P 9 1M 16k", "flush")
    until(lambda: is_whole(copy))
    three_sites[0].kill()
    restart_with(copy, "b")
    assert copy.ask("status", volume="v")["disk"] == "a"
    assert retired(copy) == ["b"]
    [aside] = (disk(copy, "b") / "retired").iterdir()
    assert (aside / "journal" / "super.a").exists()
    three_sites[0].start()
    lead(three_sites, epoch=2)
    works(nbd(three_sites[0]), "read -P 9 1M 16k", "write -P 3 3M 4k", "flush")
    until(lambda: retired(copy) == [])
    assert not aside.exists()
