"""Two who change one object at one moment: neither hears of the other."""

import asyncio

import pytest
from tests.scenario.api.conversation import Federation
from tests.scenario.api.test_tenant_network import tenant_of

from nuage.catalogue.store import LostRace
from nuage.iaas.site import RACE_WAITS_S, begun_anew
from nuage.ids import SiteId

HERE = SiteId("lyon")


async def test_who_changes_one_object_at_one_moment_is_not_refused(federation: Federation) -> None:
    await tenant_of(federation, "acme")
    await tenant_of(federation, "other")
    user = {"name": "ann", "secret": "correct horse battery"}
    assert (await federation.ask("POST", "/v1/users", user))[0] == 201
    await federation.settle()
    grants = [{"give": [f"{role}@acme"]} for role in ("iaas-user", "iaas-admin", "auditor")]
    doors = "/v1/users/ann/grants"
    told = await asyncio.gather(*(federation.ask("POST", doors, each) for each in grants))
    assert [status for status, _ in told] == [200, 200, 200], told
    _, users = await federation.ask("GET", "/v1/users")
    (ann,) = (each for each in users["result"] if each["name"] == "ann")
    assert {grant["role"] for grant in ann["grants"]} == {"iaas-user", "iaas-admin", "auditor"}


async def test_what_loses_every_race_is_refused_in_the_end(federation: Federation) -> None:
    tries = []

    async def lose() -> None:
        tries.append(1)
        raise LostRace("vm vm-1 is at revision 7, the write expected revision 6", revision=7)

    with pytest.raises(LostRace):
        await begun_anew(federation.sites[HERE].site, lose)
    assert len(tries) == len(RACE_WAITS_S) + 1
