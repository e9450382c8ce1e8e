"""A guest that is nearly sent is told of, and when it stops, by QEMU's own events."""

import asyncio
from pathlib import Path

import pytest

from nuage.ids import IaasId, VmId
from nuage.model.vm import VmShape
from nuage.vnode.guest import Guest, GuestRecord, downtime_ms
from nuage.vnode.qmp import Event, QmpReader

VM = VmId("vm-1")
STOP = Event("STOP", {}, 17.25)


class Watched:
    """A guest and what was told of it."""

    def __init__(self, folder: Path) -> None:
        self.told: list[tuple[str, float]] = []
        shape = VmShape(vcpu_count=1, memory_mib=64)
        record = GuestRecord(
            vm_id=VM, iaas_id=IaasId("i"), shape=shape, mark=None, disks=(), generations=()
        )
        self._guest = Guest(
            folder,
            record,
            lambda _vm_id: None,
            leaves_soon=lambda _vm_id: self.told.append(("soon", 0.0)),
            stands_still=lambda _vm_id, at_s: self.told.append(("still", at_s)),
        )

    def hear(self, *events: Event) -> None:
        """Let QEMU say something."""
        for event in events:
            self._guest._take_event(event)


def passed(number: int) -> Event:
    return Event("MIGRATION_PASS", {"pass": number})


def migration(status: str) -> Event:
    return Event("MIGRATION", {"status": status})


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_a_guest_leaves_soon_once_all_of_it_was_sent_once(watched: Watched) -> None:
    watched.hear(migration("active"), passed(1))
    assert watched.told == []
    watched.hear(passed(2), passed(3), STOP)
    assert watched.told == [("soon", 0.0), ("still", 17.25)]


class Monitor:
    """Takes what is asked of QEMU."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, object]] = []

    def begin(self, name: str, arguments: object) -> asyncio.Future[object]:
        self.asked.append((name, arguments))
        return asyncio.get_running_loop().create_future()


async def test_a_guest_that_writes_fast_may_stand_still_longer_with_each_pass(
    tmp_path: Path,
) -> None:
    watched, monitor = Watched(tmp_path), Monitor()
    vars(watched)["_guest"].client = monitor
    watched.hear(migration("active"), *map(passed, range(1, 8)))
    limits = [30, 60, 100, 100, 100]
    assert monitor.asked == [("migrate-set-parameters", {"downtime-limit": n}) for n in limits]
    assert [downtime_ms(n, 100) for n in (1, 2, 3, 1000)] == [15, 15, 30, 100]
    assert downtime_ms(9, 10) == 10, "never more than the move may cost"


def test_a_pause_that_has_nothing_to_do_with_a_move_is_not_told(watched: Watched) -> None:
    watched.hear(STOP)
    watched.hear(migration("active"), passed(1), passed(2), migration("cancelled"), STOP)
    assert watched.told == [("soon", 0.0)]


def test_events_carry_qemus_time() -> None:
    line = (
        b'{"event": "STOP", "timestamp": {"seconds": 17, "microseconds": 250000}}\n'
        b'{"event": "STOP", "timestamp": {"seconds": -1, "microseconds": -1}}\n'
    )
    assert QmpReader().receive(line) == [STOP, Event("STOP", {})]
