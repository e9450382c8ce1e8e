"""A large disk that is lost: what compaction had written there, other copies still have."""

import shutil
from pathlib import Path

import pytest
from tests.system.storage_front.storage_front_daemon import Daemon
from tests.system.storage_front.test_storage_front_control import works
from tests.system.storage_front.test_storage_front_rivals import is_whole, make, retired, sequence
from tests.system.storage_front.test_storage_front_scrub import lead, nbd, until

pytestmark = pytest.mark.system


def give_large_disk(daemon: Daemon) -> Path:
    """Start a daemon again with a large disk."""
    daemon.kill()
    large = daemon.folder / "large"
    daemon.more += ["--base", f"large={large}"]
    daemon.start()
    return large


def has_copy(daemon: Daemon) -> bool:
    return daemon.ask("list")["volumes"] != []


def told(daemon: Daemon) -> list[object]:
    """Return what the daemon told of segments."""
    daemon.lines.clear()
    daemon.ask("receipts", after=0)
    rows = [line["receipt"] for line in daemon.lines if line.get("event") == "receipt"]
    return [row["act"] for row in rows if isinstance(row, dict)]


def test_a_copy_whose_large_disk_was_replaced_is_made_anew_from_the_others(
    three_sites: list[Daemon],
) -> None:
    head, copy, _ = three_sites
    large = give_large_disk(copy)
    for daemon in three_sites:
        make(daemon, "")
    lead(three_sites)
    works(nbd(head), "write -P 7 1M 16k", "flush")
    head.ask("close_head", volume="v")
    lead(three_sites, epoch=2)  # which seals what was written
    until(lambda: sequence(copy) == sequence(head) != 0 and told(copy) == ["sealed"])
    copy.kill()
    shutil.rmtree(large)
    copy.start()
    until(lambda: not has_copy(copy))
    make(copy, "", joins=True, epoch=2)
    works(nbd(head), "write -P 9 1M 4k", "flush")
    until(lambda: is_whole(copy) and sequence(copy) == sequence(head))
    until(lambda: retired(copy) == [])
    assert not [*copy.folder.glob("data/retired/*")]
    assert told(copy) == ["sealed"]
    head.kill()
    copy.ask("open_head", volume="v", epoch=3, policy="local", nbd="v")
    works(nbd(copy), "read -P 9 1M 4k", "read -P 7 1028k 12k")
