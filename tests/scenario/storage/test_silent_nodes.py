"""An IO-node that does not answer: what waits for it, and the commands that end that."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.scenario.storage.test_copies_move_away import FRENCH_PAIR, LYON, RENNES, Storage

from nuage.ids import NodeId, SiteId
from nuage.model.identity import Grant, Role
from nuage.model.status import NodeStatus


@pytest.fixture
async def storage() -> AsyncIterator[Storage]:
    bench = Storage()
    await bench.open()
    bench.tokens.know("operator", Grant(Role.OPERATOR, "lyon"), Grant(Role.OPERATOR, "rennes"))
    yield bench
    await bench.close()


async def silence(storage: Storage, node_id: NodeId) -> None:
    """Have a node say nothing any more, and its site write that down."""
    site = next(s for s in storage.sites.values() if any(
        i.node.node_id == node_id for i in s.ionodes))  # fmt: skip
    site.ionodes = [i for i in site.ionodes if i.node.node_id != node_id]
    await site.site.save(
        NodeStatus(node_id=node_id, site_id=site.site_id, connected=False, since_s=0.0)
    )
    await storage.settle()


async def shown(storage: Storage, node_id: NodeId) -> Any:
    _, answer = await storage.ask("GET", f"/v1/nodes/{node_id}", who="operator")
    return answer["result"]["silent"]


def node_of(storage: Storage, name: str, site_id: SiteId) -> NodeId:
    volume = next(v for v in storage.volumes() if v.name == name)
    return next(place.node_id for place in volume.replicas if place.site_id == site_id)


async def test_an_only_copy_on_a_silent_node_is_named_with_what_can_be_done(
    storage: Storage,
) -> None:
    await storage.build(sites=["lyon"], copies=1, copy_sites=1)
    node = node_of(storage, "data", LYON)
    assert await shown(storage, node) is None
    await silence(storage, node)
    told = await shown(storage, node)
    assert [(row["volume"], row["iaas"], row["other_copies"]) for row in told["at_stake"]] == [
        ("data", "acme", 0), ("logs", "acme", 0),
    ]  # fmt: skip
    assert "`nuage volume accept-loss data`" in told["at_stake"][0]["help"]
    status, _ = await storage.ask("DELETE", "/v1/iaas/acme/volumes/logs", who="tenant")
    assert status == 200
    await storage.settle()
    told = await shown(storage, node)
    assert [row["volume"] for row in told["at_stake"]] == ["data"]
    assert told["unerased"] == ["logs"]


async def test_writes_that_wait_for_a_silent_node_go_on_by_the_command_that_it_shows(
    storage: Storage,
) -> None:
    await storage.build(**FRENCH_PAIR)
    node = node_of(storage, "data", RENNES)
    await silence(storage, node)
    told = await shown(storage, node)
    assert {row["other_copies"] for row in told["at_stake"]} == {1}
    assert "`nuage volume degrade data`" in told["at_stake"][0]["help"]
    assert f"`nuage node revoke {node}`" in told["made_anew"]
    for volume in storage.volumes():
        await storage.degrade(volume, node)
    await storage.settle()
    told = await shown(storage, node)
    assert (told["at_stake"], told["going_on_count"]) == ([], 2)


async def test_of_three_copies_one_may_be_silent_and_not_two(storage: Storage) -> None:
    await storage.build(**FRENCH_PAIR | {"copies": 3, "ack_policy": "any-2-of-3"})
    first, second = (node_of(storage, "data", site_id) for site_id in (LYON, RENNES))
    await silence(storage, second)
    told = await shown(storage, second)
    assert (told["at_stake"], told["going_on_count"]) == ([], 2)
    path = f"/v1/nodes/{second}/maintenance"
    status, _ = await storage.ask("PUT", path, {"maintenance": True}, who="operator")
    assert status == 200
    await storage.settle()
    assert "never while it is in maintenance" in (await shown(storage, second))["made_anew"]
    await silence(storage, first)
    told = await shown(storage, second)
    assert {row["other_copies"] for row in told["at_stake"]} == {1}
    assert "may lack writes" in told["at_stake"][0]["help"]
