"""When a volume may go back to a moment: as long as no VM uses it."""

import asyncio
from dataclasses import replace

import pytest
from tests.scenario.api.conversation import Federation
from tests.unit.iaas.iaas_makers import vm

from nuage.errors import Conflict
from nuage.iaas.past import require_stopped
from nuage.ids import SiteId
from nuage.model.identity import Grant, Role
from nuage.model.vm import VmState
from nuage.model.volume import Volume

CONTRACT = {"data_countries": ["FR"], "copies": 1, "copy_sites": 1, "ack_policy": "local"}


async def test_a_rollback_waits_for_a_vm_that_is_stopping_and_refuses_one_that_runs(
    federation: Federation,
) -> None:
    _, answer = await federation.ask("POST", "/v1/iaas", {"name": "acme", "contract": CONTRACT})
    federation.tokens.know("tenant", Grant(Role.IAAS_ADMIN, answer["result"]["id"]))
    await federation.settle()
    body = {"name": "data", "size_bytes": 64 << 20}
    status, answer = await federation.ask("POST", "/v1/iaas/acme/volumes", body, who="tenant")
    assert status == 202, answer
    await federation.settle()
    index = federation.sites[SiteId("lyon")].index
    (volume,) = index.values(Volume)
    home = index.home("volume", volume.volume_id)
    assert home is not None
    site = federation.sites[home].site
    user = replace(vm(site=home, volumes=(volume.volume_id,)), iaas_id=volume.iaas_id)
    used = replace(volume, vm_id=user.vm_id)
    await site.save(replace(user, state=VmState.RUNNING), used)
    with pytest.raises(Conflict, match="is running and uses data"):
        await require_stopped(site, used)
    await site.save(replace(user, state=VmState.STOPPING))
    waiting = asyncio.ensure_future(require_stopped(site, used))
    await asyncio.sleep(0)
    assert not waiting.done()
    await site.save(replace(user, state=VmState.STOPPED))
    await waiting
