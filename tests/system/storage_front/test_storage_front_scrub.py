"""Copies that rot on disk: found by a pass or a reader, written anew from another copy, or told."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.system.storage_front.storage_front_daemon import MIB, Daemon
from tests.system.storage_front.test_storage_front_control import qemu_io, works

from nuage.units import KIB

pytestmark = pytest.mark.system

BLOCK_BYTES = 4 * KIB
SEEN_WITHIN_S = 120.0


def nbd(daemon: Daemon) -> str:
    return f"nbd://127.0.0.1:{daemon.nbd}/v"


def lead(daemons: list[Daemon], epoch: int = 1) -> None:
    """Let the first lead a volume whose copies are on all."""
    head = daemons[0]
    replicas = [
        {"name": f"{site}-io1", "site": site, "address": f"127.0.0.1:{daemon.replica}"}
        for site, daemon in zip(("lyon", "brest"), daemons[1:], strict=True)
    ]
    head.ask("open_head", volume="v", epoch=epoch, policy="any-2-of-3", nbd="v", replicas=replicas)
    head.wait_until_open(timeout_s=SEEN_WITHIN_S)


def serve(daemons: list[Daemon]) -> None:
    for daemon in daemons:
        daemon.ask(
            "create_replica",
            volume="v",
            size_bytes=64 * MIB,
            logical_block_bytes=512,
            uuid="0123456789abcdef0123456789abcdef",
        )
    lead(daemons)
    works(nbd(daemons[0]), "write -P 7 1M 16k", "write -P 9 2M 4k", "flush")
    until(lambda: all(sequence(daemon) == sequence(daemons[0]) for daemon in daemons))


def serve_from_disk(daemons: list[Daemon]) -> None:
    """Serve a volume whose head has in memory nothing of what was written."""
    serve(daemons)
    daemons[0].kill()
    daemons[0].start()
    lead(daemons, epoch=2)


def sequence(daemon: Daemon) -> object:
    status = daemon.ask("status", volume="v")
    kept = status["head"] or status.get("copy")
    assert isinstance(kept, dict)
    return kept["durable_sequence"]


def until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + SEEN_WITHIN_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)  # noqa: TID251 - real processes


def scrub(daemon: Daemon) -> dict[str, object]:
    """Have a copy look itself over; return what it then says."""
    daemon.ask("scrub", volume="v")
    told: dict[str, object] = {}

    def is_over() -> bool:
        told.update(daemon.ask("status", volume="v")["scrub"])  # type: ignore[call-overload]
        return told["running"] is None and told["waiting"] == 0

    until(is_over)
    return told


def places(daemon: Daemon, value: int) -> list[tuple[Path, int]]:
    """Return where blocks full of `value` lie in a copy's segments."""
    found = []
    for path in sorted((daemon.folder / "data" / "volumes" / "v" / "journal").glob("seg.*")):
        data = path.read_bytes()
        found += [
            (path, at)
            for at in range(0, len(data), BLOCK_BYTES)
            if data[at : at + BLOCK_BYTES] == bytes([value]) * BLOCK_BYTES
        ]
    return found


def rot(daemon: Daemon, value: int) -> list[tuple[Path, int]]:
    """Damage every block of `value` in a copy."""
    found = places(daemon, value)
    for path, at in found:
        with path.open("r+b") as file:
            file.seek(at + 100)
            file.write(b"rotten")
    return found


def test_a_pass_finds_what_rotted_on_a_copy_and_has_it_mended_by_another(
    three_sites: list[Daemon],
) -> None:
    serve(three_sites)
    copy = three_sites[1]
    rotten = rot(copy, 7)
    assert len(rotten) == 4
    assert places(copy, 7) == []
    told = scrub(copy)
    assert (told["found"], told["mended"], told["lost"]) == (4, 4, [])
    assert int(str(told["last_s"])) > 0
    assert places(copy, 7) == rotten
    assert scrub(copy)["found"] == 4, "nothing new is found"


def test_a_reader_is_answered_from_another_copy_when_the_heads_own_has_rotted(
    three_sites: list[Daemon],
) -> None:
    serve_from_disk(three_sites)
    head = three_sites[0]
    rotten = rot(head, 7) + rot(head, 9)
    works(nbd(head), "read -P 7 1M 16k", "read -P 9 2M 4k", "write -P 5 2M 1k", "read -P 5 2M 1k")
    until(lambda: places(head, 7) == rotten[:4])
    assert "block_mended" in head.log


def test_what_no_copy_has_is_told_by_volume_and_block_and_the_rest_is_served(
    three_sites: list[Daemon],
) -> None:
    serve_from_disk(three_sites)
    for daemon in three_sites:
        rot(daemon, 9)
    told = scrub(three_sites[1])
    assert told["lost"] == [[2 * MIB // BLOCK_BYTES, 1]]
    assert told["mended"] == 0
    assert "block_lost" in three_sites[1].log
    metrics = str(three_sites[0].ask("metrics")["text"])
    assert 'nuage_volume_lost_blocks{volume="v"}' in metrics
    refused = qemu_io(nbd(three_sites[0]), "read 2M 4k")
    assert "Input/output error" in refused.stdout + refused.stderr
    works(nbd(three_sites[0]), "read -P 7 1M 16k", "write -P 9 2M 4k", "read -P 9 2M 4k")


def test_a_copy_mends_its_own_headers_and_goes_on_with_its_passes_after_a_restart(
    three_sites: list[Daemon],
) -> None:
    serve(three_sites)
    copy = three_sites[2]
    path, at = places(copy, 9)[0]
    with path.open("r+b") as file:
        file.seek(at - BLOCK_BYTES)
        before = file.read(BLOCK_BYTES)
        assert before.startswith(b"NUAGGRP1")
        file.seek(at - BLOCK_BYTES + 70)
        file.write(b"rotten")
    told = scrub(copy)
    assert (told["found"], told["mended"]) == (1, 1)
    assert path.read_bytes()[at - BLOCK_BYTES : at] == before
    copy.kill()
    copy.start()
    until(lambda: bool(three_sites[0].head()["copies"][1]["state"] == "live"))  # type: ignore[index]

    def remembers() -> bool:
        kept = copy.ask("status", volume="v").get("scrub")
        return isinstance(kept, dict) and (kept["found"], kept["mended"]) == (1, 1)

    until(remembers)


@pytest.mark.parametrize("lost", ["superblocks", "description"])
def test_a_copy_that_nobody_can_open_is_put_aside_and_made_anew(
    three_sites: list[Daemon], lost: str
) -> None:
    serve(three_sites)
    head, other, damaged = three_sites
    damaged.stop()
    folder = damaged.folder / "data" / "volumes" / "v"
    if lost == "superblocks":
        for name in ("super.a", "super.b"):
            (folder / "journal" / name).write_bytes(b"\xff" * 4096)
    else:
        (folder / "volume.json").unlink()
    damaged.start()
    fault = "no valid superblock" if lost == "superblocks" else "volume.json: No such file"
    assert damaged.ask("list")["volumes"] == []
    assert fault in damaged.log
    assert list((damaged.folder / "data/retired/v/journal").glob("seg.*")), "nothing of it is gone"
    works(nbd(head), "write -P 5 4M 64k", "flush")
    damaged.ask(
        "create_replica", volume="v", size_bytes=64 * MIB, logical_block_bytes=512,
        uuid="0123456789abcdef0123456789abcdef", joins=True, epoch=1,
    )  # fmt: skip

    def is_whole() -> bool:
        copy = damaged.ask("status", volume="v").get("copy")
        return isinstance(copy, dict) and copy["whole"] and sequence(damaged) == sequence(head)

    until(is_whole)
    other.kill()
    works(nbd(head), "read -P 5 4M 64k", "write -P 6 5M 4k", "flush")
    retired = damaged.ask("status", volume="v")["retired"]
    assert isinstance(retired, list)
    assert len(retired) == 1, "it is kept"


def test_a_share_holds_requests_back_and_what_was_taken_is_told(
    daemons: Callable[[str], Daemon],
) -> None:
    daemon = daemons("one")
    daemon.ask("create_volume", volume="v", size_bytes=64 * MIB, logical_block_bytes=512)
    daemon.ask("open_head", volume="v", epoch=1, nbd="v")

    def share() -> dict[str, object]:
        shares = daemon.ask("list")["shares"]
        assert isinstance(shares, dict)
        found: dict[str, object] = shares[""]
        return found

    works(nbd(daemon), *(f"write -P 1 {n}k 4k" for n in range(0, 80, 4)))
    free = share()
    assert (free["operations_per_s"], free["held"]) == (0, 0)
    assert int(str(free["operations"])) >= 20
    daemon.ask("set_share", limits={"operations_per_s": 20})
    works(nbd(daemon), *(f"write -P 2 {n}k 4k" for n in range(0, 80, 4)))
    held = share()
    assert held["operations_per_s"] == 20
    assert int(str(held["held"])) > 0
    daemon.ask("set_share", limits={})
    works(nbd(daemon), *(f"read -P 2 {n}k 4k" for n in range(0, 80, 4)))
    assert share()["held"] == held["held"]


def test_what_a_copy_put_aside_goes_with_a_sound_pass_while_another_copy_is_there(
    three_sites: list[Daemon],
) -> None:
    serve(three_sites)
    head, led, other = three_sites
    aside = [put_aside(daemon) for daemon in (head, led)]
    scrub(led)
    assert [path.exists() for path in aside] == [True, False]
    led.kill()
    other.kill()
    until(lambda: live_count(head) == 0)
    scrub(head)
    assert aside[0].exists(), "nobody else may have it"
    led.start()
    other.start()
    until(lambda: live_count(head) == 2)
    scrub(head)
    assert not aside[0].exists()


def test_a_tail_that_a_later_head_refused_is_kept_told_and_goes_once_the_copy_is_proven(
    three_sites: list[Daemon],
) -> None:
    serve(three_sites)
    former, head, other = three_sites
    journal = former.folder / "data/volumes/v/journal"
    head.kill()
    other.kill()
    until(lambda: live_count(former) == 0)
    known = places(former, 5)
    former.begin("write", volume="v", offset=MIB, data="05" * 4096)  # nobody else gets it
    until(lambda: places(former, 5) != known)
    former.kill()
    head.start()
    other.start()
    replicas = [
        {"name": f"{site}-io1", "site": site, "address": f"127.0.0.1:{daemon.replica}"}
        for site, daemon in (("marne", former), ("brest", other))
    ]
    head.ask(
        "open_head", volume="v", epoch=2, policy="any-2-of-3", nbd="v", replicas=replicas
    )  # fmt: skip
    head.wait_until_open(timeout_s=SEEN_WITHIN_S)
    works(nbd(head), "write -P 3 1M 4k", "flush")
    former.start()
    until(lambda: [*journal.glob("quarantine.*")] != [])
    until(lambda: live_count(head) == 2)
    [aside] = journal.glob("quarantine.*")
    assert bytes([5]) * 4096 in aside.read_bytes()
    # Not by a pass that had begun before.
    until(lambda: scrub(former)["waiting"] == 0 and not aside.exists())
    for said in ("quarantine_kept", "quarantine_removed"):
        assert said in former.log
    works(nbd(head), "read -P 3 1M 4k")


ASIDE = b"part of a log"


def put_aside(daemon: Daemon) -> Path:
    """Leave what a copy had to cut from its log a day ago."""
    path = daemon.folder / "data/volumes/v/journal/quarantine.0000000000000001.0000000000010000"
    path.write_bytes(ASIDE)
    os.utime(path, (0, time.time() - 86400))
    return path


def live_count(daemon: Daemon) -> int:
    """Return how many copies elsewhere get each write."""
    copies = daemon.head()["copies"]
    assert isinstance(copies, list)
    return sum(copy["state"] == "live" for copy in copies)
