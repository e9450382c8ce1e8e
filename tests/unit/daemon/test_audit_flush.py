"""Audit entries that arrive during a flush wait for it, and none is lost or reordered."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nuage.daemon.access import Audit
from nuage.daemon.process import Tasks
from nuage.ids import SiteId
from nuage.trust.audit import AuditLog


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    made = Tasks()
    yield made
    await made.close()


def note(audit: Audit, number: int) -> None:
    audit.note(
        who="alice",
        what="vm.create",
        on=f"vm-{number}",
        outcome="ok",
        request_id=f"req-{number}",
        from_address="unix",
    )


def targets(directory: Path) -> list[str]:
    text = "".join(path.read_text() for path in sorted(directory.glob("audit-*.log")))
    found = [line.partition('"target":"')[2].partition('"')[0] for line in text.splitlines()]
    return [target for target in found if target]


async def test_entries_noted_while_the_disk_is_busy_follow_in_order(
    tmp_path: Path, tasks: Tasks
) -> None:
    log = AuditLog(
        tmp_path,
        site_id=SiteId("marne"),
        key=Ed25519PrivateKey.generate(),
        now_s=lambda: 1000.0,
    )
    audit = Audit(log, tasks)
    note(audit, 1)
    tasks.start("flush", audit.sync())
    for number in range(2, 40):
        note(audit, number)
        if number % 7 == 0:
            await audit.sync()
    audit.seal()
    assert targets(tmp_path) == [f"vm-{number}" for number in range(1, 40)]
    audit.close()
