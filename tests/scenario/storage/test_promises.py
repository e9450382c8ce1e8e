"""How much of an IO-node may be promised, asked in every way: whole sites, played daemons.

Each disk has 1000 GiB, so with the default ratio 4000 GiB of volumes have copies on a node at most.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from tests.scenario.storage.test_copies_move_away import (
    FRENCH_PAIR,
    LOST_AFTER_S,
    LYON,
    RENNES,
    LaterClock,
    Storage,
)

from nuage.iaas.past import MOMENT_METHOD
from nuage.ids import NodeId
from nuage.model.history import AskMoment, FoundMoment
from nuage.model.identity import Grant, Role
from nuage.model.status import OVERCOMMIT_RATIO, NodeStatus, SpaceAlarm
from nuage.storage.heads import is_settled
from nuage.units import GIB, MIB, TIB

MAX_BYTES = 4000 * GIB
VOLUMES = "/v1/iaas/acme/volumes"
ROOMY = FRENCH_PAIR | {"quota": {"volume_bytes": 1000 * TIB}}


class Promising(Storage):
    """As in `Storage`, with one IO-node of each French site full of promises, or nearly."""

    async def begin(self, **contract: object) -> None:
        await self.open()
        await self.build(**ROOMY | contract)
        self.tokens.know("operator", Grant(Role.OPERATOR, "lyon"))

    async def _ask_node(
        self, node_id: NodeId, method: str, body: object, *rest: object, **more: object
    ) -> Any:
        if method == MOMENT_METHOD:
            assert isinstance(body, AskMoment)
            volume = next(v for v in self.volumes() if v.volume_id == body.volume_id)
            return FoundMoment(sequence=1, size_bytes=volume.size_bytes)
        return await super()._ask_node(node_id, method, body, *rest, **more)

    async def volume(self, name: str, size_bytes: int, *, at: str = "lyon") -> tuple[int, Any]:
        body = {"name": name, "size_bytes": size_bytes}
        return await self.ask("POST", VOLUMES, body, who="tenant", at=at)

    async def fill(self, size_bytes: int, *names: str) -> None:
        for name in names:
            status, answer = await self.volume(name, size_bytes)
            assert status == 202, answer
            await self.settle()
        await self.until(lambda: all(is_settled(v) for v in self.volumes()))

    def promised(self, node_id: str) -> int:
        """Return what every site says is promised of a node: all the same."""
        (told,) = {s.index.promises.on(NodeId(node_id)) for s in self.sites.values()}
        return told

    def ionodes(self, *sites: str) -> list[str]:
        return [i.node.node_id for s in sites for i in self.sites[s].ionodes]  # type: ignore[index]

    async def say(self, ratio: float, *node_ids: str) -> None:
        """Have IO-nodes say another ratio."""
        for site in self.sites.values():
            for ionode in site.ionodes:
                if ionode.node.node_id in node_ids:
                    ionode.overcommit_ratio = ratio
        await self.settle()
        await self.look()


@pytest.fixture
async def storage() -> AsyncIterator[Promising]:
    bench = Promising()
    yield bench
    await bench.close()


def refused_by(status: int, answer: Any) -> set[str]:
    assert status == 422, answer
    error = answer["error"]
    rows = [row for row in error["refusals"] if row["rule"] == "promised"]
    assert rows, error
    assert all("too few" in row["reason"] for row in rows), rows
    assert "overcommit_ratio" in error["hint"], error
    return {row["candidate"] for row in rows}


async def test_no_volume_is_promised_beyond_the_ratio_however_it_is_asked(
    storage: Promising,
) -> None:
    await storage.begin()
    assert refused_by(*await storage.volume("huge", 5 * TIB)) == {*storage.ionodes(LYON, RENNES)}
    await storage.fill(3 * TIB, "a", "b")
    nodes = storage.ionodes(LYON, RENNES)
    assert sorted(storage.promised(node) for node in nodes) == [
        3 * TIB, 3 * TIB, 3 * TIB + 128 * MIB, 3 * TIB + 128 * MIB,
    ]  # fmt: skip
    for at in ("lyon", "rennes", "zurich"):  # from each site, which sees the others' too
        body = {"name": f"more-{at}", "size_bytes": TIB}
        status, answer = await storage.ask("POST", VOLUMES, body, who="tenant", at=at)
        refused_by(status, answer)

    status, answer = await storage.ask(
        "PUT", f"{VOLUMES}/a/size", {"size_bytes": 4 * TIB}, who="tenant"
    )
    held = {p.node_id for p in next(v for v in storage.volumes() if v.name == "a").replicas}
    assert refused_by(status, answer) == held
    status, answer = await storage.ask("POST", f"{VOLUMES}/a/clone", {"name": "c"}, who="tenant")
    assert refused_by(status, answer) == held
    for body in (
        {"name": "web", "image": "guest", "volume_bytes": 2 * TIB},
        {"name": "web", "image": "guest", "volume_bytes": 2 * TIB, "site": "rennes"},
    ):
        status, answer = await storage.ask("POST", "/v1/iaas/acme/vms", body, who="tenant")
        assert status == 422, answer
        told = [row for row in answer["error"]["refusals"] if row["rule"] == "promised"]
        assert told, answer
        assert "too few" in told[0]["reason"], answer
    for node in held:
        path = f"{VOLUMES}/a/replace-copy"
        status, answer = await storage.ask("POST", path, {"node": node}, who="tenant")
        refused_by(status, answer)
    path = f"/v1/nodes/{next(n for n in held if n.startswith('lyon'))}/draining"
    refused_by(*await storage.ask("PUT", path, {"draining": True}, who="operator"))
    more = {"contract": ROOMY | {"copies": 3}}
    refused_by(*await storage.ask("PUT", "/v1/iaas/acme/contract", more))
    assert all(storage.promised(node) <= MAX_BYTES for node in nodes)

    # What is deleted is promised no more, and what fits may grow.
    status, answer = await storage.ask("DELETE", f"{VOLUMES}/b", who="tenant")
    assert status == 200, answer
    await storage.settle()
    await storage.fill(3 * TIB, "d")
    body = {"size_bytes": 3 * TIB + GIB}
    status, answer = await storage.ask("PUT", f"{VOLUMES}/d/size", body, who="tenant")
    assert status == 200, answer


async def test_two_at_once_at_one_site_are_not_both_promised_the_last_of_it(
    storage: Promising,
) -> None:
    """Neither is in the catalogue when the other is asked for."""
    await storage.begin(sites=["lyon"], copies=1, copy_sites=1)
    asked = (storage.volume(f"v{number}", 3 * TIB) for number in range(4))
    told = await asyncio.gather(*asked)
    assert sorted(status for status, _ in told) == [202, 202, 422, 422], told
    await storage.settle()
    assert all(storage.promised(node) <= MAX_BYTES for node in storage.ionodes(LYON))
    site = storage.sites[LYON].site
    assert not any(site.promises_begun.on(NodeId(n)) for n in storage.ionodes(LYON))


async def test_a_drain_is_refused_where_each_copy_has_a_place_and_all_of_them_have_not(
    storage: Promising,
) -> None:
    await storage.begin(sites=["lyon"], copies=1, copy_sites=1)
    await storage.fill(1200 * GIB, "a", "b", "c", "d", "e")
    other, first = sorted(storage.ionodes(LYON), key=storage.promised)
    left_bytes = MAX_BYTES - storage.promised(other)
    assert 1200 * GIB < left_bytes < 2 * 1200 * GIB < storage.promised(first)
    path = f"/v1/nodes/{first}/draining"
    assert refused_by(*await storage.ask("PUT", path, {"draining": True}, who="operator")) == {
        other
    }


async def test_what_is_over_a_lowered_ratio_stays_and_keeps_new_volumes_out(
    storage: Promising,
) -> None:
    await storage.begin()
    await storage.fill(3 * TIB, "a", "b")
    nodes = storage.ionodes(LYON, RENNES)
    before = storage.volumes()
    await storage.say(1.0, *nodes)
    status = storage.sites[RENNES].index.value(NodeStatus, NodeId(nodes[0]))
    assert (status.overcommit_ratio, status.promise_alarm) == (1.0, SpaceAlarm.FULL)
    refused_by(*await storage.volume("more", MIB))
    for _ in range(3):
        await storage.look()
    assert storage.volumes() == before
    _, listed = await storage.ask("GET", "/v1/nodes")
    row = next(row for row in listed["result"] if row["node"]["node_id"] == nodes[0])
    assert (row["promised_bytes"], row["promise_bytes_max"]) == (
        storage.promised(nodes[0]), 1000 * GIB,
    )  # fmt: skip
    _, shown = await storage.ask("GET", f"/v1/nodes/{nodes[0]}")
    assert shown["result"]["promised_bytes"] == row["promised_bytes"]
    _, sites = await storage.ask("GET", "/v1/sites")
    row = next(row for row in sites["result"] if row["datacenter"]["site_id"] == "lyon")
    assert row["promised_bytes"] == sum(map(storage.promised, storage.ionodes(LYON)))
    assert (row["disk_bytes"], row["promise_bytes_max"]) == (2000 * GIB, 2000 * GIB)
    await storage.say(OVERCOMMIT_RATIO, *nodes)
    status = storage.sites[RENNES].index.value(NodeStatus, NodeId(nodes[0]))
    assert status.promise_alarm is SpaceAlarm.LOW
    assert (await storage.volume("more", MIB))[0] == 202


async def test_a_copy_that_is_made_anew_waits_for_a_node_that_may_be_promised_it_and_says_so(
    storage: Promising,
) -> None:
    await storage.begin(copies=3, ack_policy="any-2-of-3")
    await storage.fill(200 * GIB, "a")
    volume = next(v for v in storage.volumes() if v.name == "a")
    held = {place.node_id for place in volume.replicas}
    lost = next(place for place in volume.replicas if place.node_id != volume.head)
    (spare,) = set(storage.ionodes(LYON, RENNES)) - held
    await storage.say(0.1, spare)
    clock = LaterClock()
    for site in storage.sites.values():
        site.site.clock, site.site.age_of = clock, lambda _site: 0.0
        site.ionodes = [i for i in site.ionodes if i.node.node_id != lost.node_id]
        for daemon in (d for ionode in site.ionodes for d in ionode.daemons.values()):
            daemon.silent_copies.add(lost.node_id)
    home = storage.sites[lost.site_id]
    since_s = clock.now_s() - LOST_AFTER_S
    known = home.index.value(NodeStatus, lost.node_id)
    await home.site.save(replace(known, connected=False, since_s=since_s))

    def is_told() -> bool:
        clock.ahead_s += 40.0
        return "overcommit_ratio" in next(v for v in storage.volumes() if v.name == "a").held_up

    await storage.until(is_told, is_short=True)
    assert "a" not in storage.on(NodeId(spare))
    await storage.say(1.0, spare)

    def is_made_anew() -> bool:
        clock.ahead_s += 40.0
        volume = next(v for v in storage.volumes() if v.name == "a")
        return "a" in storage.on(NodeId(spare)) and is_settled(volume) and not volume.held_up

    await storage.until(is_made_anew, is_short=True)
