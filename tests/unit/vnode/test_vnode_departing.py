"""A guest that is nearly sent is told of, and when it stops, by QEMU's own events."""

from pathlib import Path

import pytest

from nuage.ids import IaasId, VmId
from nuage.model.vm import VmShape
from nuage.vnode.guest import Guest, GuestRecord
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
