"""A guest whose QEMU answers nothing for a while, since it waits for a disk."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from nuage.ids import IaasId, VmId
from nuage.model.vm import VmShape
from nuage.vnode.guest import Guest, GuestRecord
from nuage.vnode.hypervisor import RunState
from nuage.vnode.qmp import Json


class MuteGuest(Guest):
    """Its monitor stands still until `speaks` is set; `asked` counts the questions to it."""

    asked = 0
    speaks: asyncio.Event
    alive = True

    async def execute(self, name: str, _arguments: Mapping[str, Json] | None = None) -> Json:
        self.asked += 1
        await self.speaks.wait()
        return {"status": "running"} if name == "query-status" else {}


async def test_a_guest_whose_monitor_stands_still_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nuage.vnode.guest.LOOK_TIMEOUT_S", 0.01)
    record = GuestRecord(
        vm_id=VmId("vm-1"), iaas_id=IaasId("iaas-1"), shape=VmShape(), mark=None, disks=(),
        generations=(),
    )  # fmt: skip
    guest = MuteGuest(tmp_path, record, lambda _vm_id: None)
    guest.speaks = asyncio.Event()
    first = await guest.observe()
    assert (first.state, first.failure) == (RunState.PAUSED, "QEMU does not answer")
    asked = guest.asked
    await guest.observe()
    assert guest.asked == asked, "one question at a time"
    guest.speaks.set()
    monkeypatch.setattr("nuage.vnode.guest.LOOK_TIMEOUT_S", 10.0)
    assert (await guest.observe()).state is RunState.RUNNING
    guest.speaks.clear()
    monkeypatch.setattr("nuage.vnode.guest.LOOK_TIMEOUT_S", 0.01)
    mute = await guest.observe()
    assert (mute.state, mute.failure) == (RunState.RUNNING, ""), "as it was when it spoke last"
    guest.speaks.set()
