"""Audit entries that arrive during a flush: none is lost, none waits, the order stays."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nuage.daemon.access import Audit
from nuage.daemon.process import Tasks
from nuage.ids import SiteId
from nuage.trust.audit import AuditLog
from nuage.trust.pki import pem_of_key

ROOT = Path(__file__).parents[3]


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
        key=Ed25519PrivateKey.generate,
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


STUCK = """
import asyncio, sys, threading
from pathlib import Path
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from tests.unit.daemon.test_audit_flush import note
from nuage.daemon.access import Audit
from nuage.daemon.process import Tasks
from nuage.trust.audit import AuditLog


class Stuck(AuditLog):
    def flush(self) -> None:
        flushing.set()
        threading.Event().wait()


async def main() -> None:
    key = load_pem_private_key(Path(sys.argv[2]).read_bytes(), None)
    log = Stuck(Path(sys.argv[1]), site_id="marne", key=lambda: key, now_s=lambda: 1000.0)
    tasks = Tasks()
    audit = Audit(log, tasks)
    note(audit, 1)
    tasks.start("flush", audit.sync())
    while not flushing.is_set():
        await asyncio.sleep(0.001)
    for number in range(2, 40):
        note(audit, number)
        print(number, flush=True)  # the caller is answered
    await asyncio.sleep(3600)

flushing = threading.Event()
asyncio.run(main())
"""


def test_no_act_that_was_answered_is_missing_after_a_kill_during_a_flush(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    (tmp_path / "key.pem").write_bytes(pem_of_key(key))
    directory = tmp_path / "audit"
    command = [sys.executable, "-c", STUCK, str(directory), str(tmp_path / "key.pem")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "39":
            break
    process.kill()
    process.stdout.close()
    process.wait()
    log = AuditLog(directory, site_id=SiteId("marne"), key=lambda: key, now_s=lambda: 1000.0)
    log.close()
    assert targets(directory) == [f"vm-{number}" for number in range(1, 40)]
