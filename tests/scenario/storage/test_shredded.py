"""A data key that was destroyed: what can come to nothing is refused at once, and told as it is."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from tests.scenario.storage.test_copies_move_away import LYON, Storage
from tests.unit.iaas.iaas_makers import vm

from nuage.iaas.keys import UNREADABLE
from nuage.model.identity import Grant, Role
from nuage.model.vm import PowerWish, VmState
from nuage.model.volume import OutsideHost, Volume, VolumeState

REFUSED = (
    ("POST", "volumes", {"name": "more", "size_bytes": 64 << 20}),
    ("POST", "volumes/data/clone", {"name": "copy"}),
    ("POST", "volumes/data/rollback", {"sequence": 1}),
    ("POST", "volumes/data/marks", {"name": "now"}),
    ("POST", "volumes/data/views", {"seconds": 60}),
    ("GET", "volumes/data/history", None),
    ("PUT", "volumes/data/size", {"size_bytes": 128 << 20}),
    ("POST", "volumes/data/host", {"initiator": "iqn.2026-01.org.example:host"}),
    ("POST", "vms", {"name": "web", "image": "guest"}),
    ("POST", "vms/old/start", None),
)


@pytest.fixture
async def storage() -> AsyncIterator[Storage]:
    bench = Storage()
    await bench.open()
    body = {"name": "acme", "encrypted": True}
    status, answer = await bench.ask("POST", "/v1/iaas", body)
    assert status == 201, answer
    bench.tokens.know("tenant", Grant(Role.IAAS_ADMIN, answer["result"]["id"]))
    await bench.settle()
    body = {"name": "data", "size_bytes": 64 << 20}
    await bench.ask("POST", "/v1/iaas/acme/volumes", body, who="tenant")
    await bench.settle()
    yield bench
    await bench.close()


def data_of(storage: Storage) -> Volume:
    return next(volume for volume in storage.volumes() if volume.name == "data")


async def shred(storage: Storage) -> int:
    body = {"confirm": "acme"}
    status, _ = await storage.ask("POST", "/v1/iaas/acme/shred", body, who="tenant")
    await storage.settle()
    return status


async def test_what_can_come_to_nothing_is_refused_and_what_is_left_can_be_deleted(
    storage: Storage,
) -> None:
    volume = data_of(storage)
    home = storage.sites[LYON].index.home("volume", volume.volume_id)
    old = replace(
        vm(site=home, state=VmState.STOPPED, name="old"), iaas_id=volume.iaas_id,
        wish=PowerWish.STOPPED,
    )  # fmt: skip
    ready = replace(volume, state=VolumeState.READY, settled_epoch=volume.epoch, portal="p:1")
    await storage.sites[home].site.save(old, ready)
    assert await shred(storage) == 200
    for verb, path, body in REFUSED:
        status, answer = await storage.ask(verb, f"/v1/iaas/acme/{path}", body, who="tenant")
        assert (status, answer["error"]["code"]) == (409, "conflict"), (path, answer)
        assert "acme was destroyed" in answer["error"]["message"], path
    for _ in range(3):
        await storage.look()
    known = data_of(storage)
    assert (known.state, known.failure) == (VolumeState.FAILED, UNREADABLE)
    assert known.epoch == volume.epoch, "no head is opened for it elsewhere"
    _, answer = await storage.ask("GET", "/v1/iaas/acme/key", who="tenant")
    assert answer["result"]["is_destroyed"]
    status, answer = await storage.ask("DELETE", "/v1/iaas/acme/volumes/data", who="tenant")
    assert status == 200, answer
    await storage.settle()
    assert storage.volumes() == []


async def test_a_key_is_not_destroyed_under_a_machine_that_moves_or_a_host(
    storage: Storage,
) -> None:
    volume = data_of(storage)
    home = storage.sites[LYON].index.home("volume", volume.volume_id)
    site = storage.sites[home].site
    moving = replace(vm(site=home, state=VmState.MIGRATING), iaas_id=volume.iaas_id)
    await site.save(moving)
    assert await shred(storage) == 409
    await site.delete(moving)
    used = replace(volume, host=OutsideHost(initiator="iqn.x:host", login="host-1"))
    await site.save(used)
    assert await shred(storage) == 409
    await site.save(replace(used, host=None))
    assert await shred(storage) == 200
