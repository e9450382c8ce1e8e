"""Copies leave an IO-node that is drained, or was lost for long: whole sites, played daemons.

Real: every use case, index, feeds, `iaas.heads`. The contract is looked at after every step.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
from tests.scenario.api.conversation import Federation
from tests.simulation.federation.nodes import SimIonode, make_node
from tests.unit.iaas.iaas_makers import vm

from nuage.errors import Conflict
from nuage.iaas.heads import (
    NEAR_REST_S,
    RELEASE_METHOD,
    HeadKeeper,
    ReleaseHead,
    TakeHead,
)
from nuage.ids import NodeId, SiteId, VolumeId
from nuage.model.contract import AckPolicy, JournalRule
from nuage.model.iaas import Iaas
from nuage.model.identity import Grant, Role
from nuage.model.infrastructure import Node, NodeRole
from nuage.model.status import NODE_LOST_AFTER_S, NodeStatus
from nuage.model.vm import Vm
from nuage.model.volume import ReplicaPlace, Volume, VolumeState
from nuage.simulation.virtual_time import SkewedClock
from nuage.storage.heads import head_set, is_settled

LYON, RENNES = SiteId("lyon"), SiteId("rennes")
STEPS_MAX = 60
LOST_AFTER_S = 900.0


class Storage(Federation):
    """Three sites with two IO-nodes each, and the keepers of their volumes' copies."""

    def __init__(self) -> None:
        super().__init__()
        self.keepers: dict[SiteId, HeadKeeper] = {}
        self.history: list[tuple[str, ...]] = []

    async def open(self) -> None:
        await super().open()
        for site in self.sites.values():
            node = make_node(site.site_id, NodeRole.IONODE, 2)
            site.ionodes.append(SimIonode(self, site, node, site.clock))
            site.sessions.ask = self._ask_node  # type: ignore[method-assign, assignment]
            self.restart_controller(site.site_id)
        await self.settle()

    async def _ask_node(
        self, node_id: NodeId, method: str, body: object, *_rest: object, **_more: object
    ) -> None:
        assert method == RELEASE_METHOD
        assert isinstance(body, ReleaseHead)
        ionode = next(
            i for s in self.sites.values() for i in s.ionodes if i.node.node_id == node_id
        )
        if not body.reopen:
            await ionode.daemons[body.iaas_id].close_head(body.volume_id)

    def restart_controller(self, site_id: SiteId) -> None:
        """What a controller has in memory is lost; what it wrote stays."""
        site = self.sites[site_id]
        self.keepers[site_id] = HeadKeeper(site.site, replace_lost_after_s=LOST_AFTER_S)
        site.heads._keeper = self.keepers[site_id]  # heads are given to it

    async def build(self, **contract: object) -> None:
        status, answer = await self.ask("POST", "/v1/iaas", {"name": "acme", "contract": contract})
        assert status == 201, answer
        self.tokens.know("tenant", Grant(Role.IAAS_ADMIN, answer["result"]["id"]))
        await self.settle()
        for name in ("data", "logs"):
            body = {"name": name, "size_bytes": 64 << 20}
            status, answer = await self.ask("POST", "/v1/iaas/acme/volumes", body, who="tenant")
            assert status == 202, answer
        await self.until(lambda: all(is_settled(v) for v in self.volumes()))

    def volumes(self) -> list[Volume]:
        found = self.sites[LYON].index.values(Volume)
        return sorted(found, key=lambda volume: volume.name)

    def on(self, node_id: NodeId) -> list[str]:
        return [v.name for v in self.volumes() if any(p.node_id == node_id for p in v.replicas)]

    async def until(self, holds: Callable[[], bool], *, is_short: bool = False) -> None:
        for _ in range(STEPS_MAX):
            await self.settle()
            if not is_short:
                self.check_contract()
            if holds():
                return
            await self.look()
        raise AssertionError(f"it never came to this: {self.volumes()}")

    async def look(self) -> None:
        """Have each controller hear its nodes, and take what steps are due."""
        for site in self.sites.values():
            keeper = self.keepers[site.site_id]
            for ionode in site.ionodes:
                if site.index.value(NodeStatus, ionode.node.node_id).connected:
                    keeper.take_report(await ionode.report())
            await keeper.look()
        await self.settle()

    async def degrade(self, volume: Volume, without: NodeId) -> None:
        """Have its owner decide to go on without a copy."""
        path = f"/v1/iaas/acme/volumes/{volume.name}/degrade"
        status, answer = await self.ask("POST", path, {"without": without}, who="tenant")
        assert status == 202, answer

    async def used_at_its_head(self, volume: Volume) -> tuple[SiteId, ReplicaPlace, ReplicaPlace]:
        """Have a VM run where the head is; return that site, the head's place and the other's."""
        home = self.sites[LYON].index.home("volume", volume.volume_id)
        assert home is not None
        near = next(p for p in volume.replicas if p.node_id == volume.head)
        other = next(p for p in volume.replicas if p.node_id != volume.head)
        user = replace(vm(site=home, volumes=(volume.volume_id,)), iaas_id=volume.iaas_id)
        await self.sites[home].site.save(user, replace(volume, vm_id=user.vm_id))
        await self.settle()
        return home, near, other

    def mend(self, volume_id: VolumeId, *, all_but: NodeId) -> None:
        """Have copies of a volume take the log again, but for those on one node."""
        for daemon in (
            d for s in self.sites.values() for i in s.ionodes for d in i.daemons.values()
        ):
            daemon.failed_copies &= {(volume_id, all_but)}

    def check_contract(self) -> None:
        """As many copies with everything, in as many sites, as the contract says."""
        for volume in self.volumes():
            iaas = self.sites[LYON].index.value(Iaas, volume.iaas_id)
            if volume.state is not VolumeState.READY:
                continue
            full = [p for p in head_set(volume).members if p.node_id not in volume.catching_up]
            assert len(full) >= iaas.contract.copies, volume
            assert len({place.site_id for place in full}) >= iaas.contract.copy_sites, volume
            assert {place.site_id for place in volume.replicas} <= {LYON, RENNES}, volume


@pytest.fixture
async def storage() -> AsyncIterator[Storage]:
    bench = Storage()
    await bench.open()
    bench.tokens.know("operator", Grant(Role.OPERATOR, "lyon"))
    yield bench
    await bench.close()


FRENCH_PAIR = {"data_countries": ["FR"], "copies": 2, "copy_sites": 2, "ack_policy": "all"}


async def test_a_drained_node_is_left_head_first_and_one_copy_at_a_time(storage: Storage) -> None:
    await storage.build(**FRENCH_PAIR)
    node = storage.volumes()[0].head
    assert node is not None
    assert storage.on(node) == ["data", "logs"]
    path = f"/v1/nodes/{node}/draining"
    status, answer = await storage.ask("PUT", path, {"draining": True}, who="operator")
    assert status == 200, answer
    seen_leaving = []

    def one_at_a_time() -> bool:
        leaving = [v.name for v in storage.volumes() if v.leaving]
        seen_leaving.append(leaving)
        # Half way through its controller starts anew.
        if len(seen_leaving) == 4:
            for site_id in storage.sites:
                storage.restart_controller(site_id)
        return not storage.on(node) and all(is_settled(v) for v in storage.volumes())

    await storage.until(one_at_a_time)
    homes = {storage.sites[LYON].index.home("volume", v.volume_id) for v in storage.volumes()}
    assert len(homes) <= 2
    assert all(len(leaving) <= len(storage.sites) for leaving in seen_leaving)
    assert {len(v.replicas) for v in storage.volumes()} == {2}
    shown = storage.sites[LYON].index.value(Node, node)
    assert (shown.maintenance, shown.draining) == (True, True)
    status, _ = await storage.ask("PUT", path, {"draining": False}, who="operator")
    assert status == 200
    await storage.settle()
    assert not storage.sites[LYON].index.value(Node, node).maintenance


async def test_a_drain_is_refused_where_the_contract_leaves_no_other_place(
    storage: Storage,
) -> None:
    await storage.build(sites=["lyon"], copies=2, copy_sites=1, ack_policy="all")
    node = storage.volumes()[0].head
    path = f"/v1/nodes/{node}/draining"
    status, answer = await storage.ask("PUT", path, {"draining": True}, who="operator")
    assert status == 422, answer
    assert "cannot leave" in answer["error"]["message"], answer
    assert node is not None
    assert not storage.sites[LYON].index.value(Node, node).draining


async def test_a_volume_that_cannot_leave_a_drained_node_is_named_and_holds_up_no_other(
    storage: Storage,
) -> None:
    await storage.build(**FRENCH_PAIR | {"copy_sites": 1})
    first, other = storage.volumes()
    node = first.head
    assert node is not None
    assert storage.on(node) == [first.name, other.name]
    clock = LaterClock()
    nodes = [i.node.node_id for s in storage.sites.values() for i in s.ionodes]
    for site in storage.sites.values():
        site.site.clock, site.site.age_of = clock, lambda _site: 0.0
        for ionode in site.ionodes:
            for daemon in ionode.daemons.values():
                daemon.failed_copies |= {(first.volume_id, n) for n in nodes if not storage.on(n)}
    path = f"/v1/nodes/{node}/draining"
    status, _ = await storage.ask("PUT", path, {"draining": True}, who="operator")
    assert status == 200
    await storage.until(lambda: bool(storage.volumes()[0].catching_up))
    await storage.look()
    assert not storage.volumes()[1].leaving, "one after the other, while both go on"

    def is_left_by_the_other() -> bool:
        clock.ahead_s += 40.0
        return storage.on(node) == [first.name]

    await storage.until(is_left_by_the_other)
    stuck = storage.volumes()[0]
    (filled,) = stuck.catching_up
    assert f"replace-copy {first.name} {filled}" in stuck.held_up
    _, shown = await storage.ask("GET", f"/v1/nodes/{node}")
    assert [row["reason"] for row in shown["result"]["held_up"]] == [stuck.held_up]
    _, listed = await storage.ask("GET", "/v1/nodes")
    counts = {row["node"]["node_id"]: row["held_up_count"] for row in listed["result"]}
    assert counts[node] == 1

    storage.mend(first.volume_id, all_but=filled)
    path = f"/v1/iaas/acme/volumes/{first.name}/replace-copy"
    status, answer = await storage.ask("POST", path, {"node": filled}, who="tenant")
    assert status == 202, answer
    await storage.until(lambda: not storage.on(node) and is_settled(storage.volumes()[0]))
    await storage.until(lambda: not storage.volumes()[0].held_up)
    assert filled not in {p.node_id for p in storage.volumes()[0].replicas}


async def test_copies_of_a_node_that_is_lost_for_long_are_made_anew_elsewhere(
    storage: Storage,
) -> None:
    pair = FRENCH_PAIR | {"copies": 3, "ack_policy": "any-2-of-3"}
    await storage.build(**pair)
    volume = storage.volumes()[0]
    lost = next(p for p in volume.replicas if p.node_id != volume.head)
    site = storage.sites[lost.site_id]
    gone = next(i for i in site.ionodes if i.node.node_id == lost.node_id)
    site.ionodes.remove(gone)
    for daemons in (i.daemons for s in storage.sites.values() for i in s.ionodes):
        for daemon in daemons.values():
            daemon.silent_copies.add(lost.node_id)
    status = site.index.value(NodeStatus, lost.node_id)
    just_now = site.clock.now_s()
    await site.site.save(
        NodeStatus(
            node_id=lost.node_id, site_id=lost.site_id, connected=False, since_s=just_now,
            replica_addresses=status.replica_addresses,
        )
    )  # fmt: skip
    await storage.settle()
    for keeper in storage.keepers.values():
        await keeper.look()
    assert not any(v.leaving for v in storage.volumes()), "it may be back in a moment"
    await site.site.save(
        NodeStatus(
            node_id=lost.node_id, site_id=lost.site_id, connected=False,
            since_s=just_now - LOST_AFTER_S, replica_addresses=status.replica_addresses,
        )
    )  # fmt: skip
    await storage.until(lambda: not storage.on(lost.node_id))
    assert {len(v.replicas) for v in storage.volumes()} == {3}


async def test_volumes_keep_what_history_the_contract_says_once_it_is_changed(
    storage: Storage,
) -> None:
    await storage.build(**FRENCH_PAIR)
    rule = {"window_s": 60, "window_bytes": 1 << 30, "strict": True}
    body = {"contract": FRENCH_PAIR | {"journal": rule}}
    status, answer = await storage.ask("PUT", "/v1/iaas/acme/contract", body)
    assert status == 200, answer
    wanted = JournalRule(window_s=60, window_bytes=1 << 30, strict=True)
    await storage.until(lambda: all(v.journal == wanted for v in storage.volumes()))


class LaterClock(SkewedClock):
    """A machine's clock that a test puts forward."""

    ahead_s = 0.0

    def now_s(self) -> float:
        return super().now_s() + self.ahead_s

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.ahead_s


async def test_a_copy_left_out_by_decision_stays_out_until_its_node_is_heard_again(
    storage: Storage,
) -> None:
    await storage.build(**FRENCH_PAIR | {"copy_sites": 1})
    volume = storage.volumes()[0]
    other = next(p for p in volume.replicas if p.node_id != volume.head)
    site = storage.sites[other.site_id]
    dead = next(i for i in site.ionodes if i.node.node_id == other.node_id)
    site.ionodes.remove(dead)  # a moment ago: it passes for one that answers
    await storage.degrade(volume, other.node_id)
    for _ in range(3):
        await storage.look()
        assert storage.volumes()[0].without == (other.node_id,)
    site.ionodes.append(dead)
    # The contract, which its owner left, holds again at the end.
    await storage.until(lambda: not storage.volumes()[0].without, is_short=True)


async def test_a_copy_of_another_site_stays_out_for_as_long_as_its_nodes_loss_goes_unnoticed(
    storage: Storage,
) -> None:
    await storage.build(**FRENCH_PAIR)
    volume = storage.volumes()[0]
    other = next(p for p in volume.replicas if p.node_id != volume.head)
    home = storage.sites[LYON].index.home("volume", volume.volume_id)
    assert home is not None
    storage.sites[home].site.clock = clock = LaterClock()
    await storage.degrade(volume, other.node_id)
    for _ in range(3):
        await storage.look()
        assert storage.volumes()[0].without == (other.node_id,)
    clock.ahead_s = NODE_LOST_AFTER_S + 60.0
    storage.sites[home].site.age_of = lambda _site: 0.0
    await storage.until(lambda: not storage.volumes()[0].without, is_short=True)


async def test_a_volume_that_has_just_gone_elsewhere_does_not_swallow_what_else_was_decided(
    storage: Storage,
) -> None:
    await storage.build(**FRENCH_PAIR)
    volume = storage.volumes()[0]
    assert volume.head is not None
    other = next(p for p in volume.replicas if p.node_id != volume.head)
    home = storage.sites[LYON].index.home("volume", volume.volume_id)
    assert home is not None
    moved = await storage.keepers[home].open_at(volume, other, "its IO-node is lost")
    taker = storage.keepers[other.site_id]
    await taker.take(TakeHead(volume=moved))  # once more, since an answer was lost
    with pytest.raises(Conflict, match="has just gone to"):
        await taker.take(TakeHead(volume=replace(moved, without=(volume.head,))))


async def test_a_contract_that_is_raised_to_more_copies_has_them_made(storage: Storage) -> None:
    await storage.build(**FRENCH_PAIR)
    path = "/v1/iaas/acme/contract"
    three = FRENCH_PAIR | {"copies": 3, "ack_policy": "any-2-of-3"}
    nodes = [(s, i.node) for s in storage.sites.values() for i in s.ionodes]
    free = [(s, node) for s, node in nodes if not storage.on(node.node_id)]
    for site, node in free:
        await site.site.save(replace(node, maintenance=True))
    await storage.settle()
    status, answer = await storage.ask("PUT", path, {"contract": three})
    assert (status, answer["error"]["code"]) == (422, "no_candidate")
    rules = {r["rule"] for r in answer["error"]["refusals"]}
    assert rules == {"data_countries", "not-connected"}
    assert {len(v.replicas) for v in storage.volumes()} == {2}

    for site, node in free:
        await site.site.save(node)
    await storage.settle()
    status, answer = await storage.ask("PUT", path, {"contract": three})
    assert status == 200, answer
    await storage.until(
        lambda: all(
            len(v.whole) == 3 and v.ack_policy is AckPolicy.ANY_2_OF_3 and is_settled(v)
            for v in storage.volumes()
        ),
        is_short=True,
    )
    storage.check_contract()


async def test_a_head_moves_where_it_is_told_unless_a_vm_that_uses_it_runs_elsewhere(
    storage: Storage,
) -> None:
    await storage.build(**FRENCH_PAIR)
    volume = storage.volumes()[0]
    other = next(p for p in volume.replicas if p.node_id != volume.head)
    path = f"/v1/iaas/acme/volumes/{volume.name}/move"
    status, answer = await storage.ask("POST", path, {"to": other.site_id}, who="tenant")
    assert status == 202, answer
    assert answer["result"]["value"]["head"] == other.node_id, "its record is another site's now"
    await storage.until(lambda: all(is_settled(v) for v in storage.volumes()))
    moved, site = storage.volumes()[0], storage.sites[other.site_id].site
    assert moved.head == other.node_id
    user = vm(site=other.site_id, volumes=(moved.volume_id,))
    await site.save(replace(user, iaas_id=moved.iaas_id), replace(moved, vm_id=user.vm_id))
    await storage.settle()
    back = {"to": next(p.site_id for p in moved.replicas if p.node_id != moved.head)}
    status, answer = await storage.ask("POST", path, back, who="tenant")
    assert status == 409, answer
    assert "stays near it" in answer["error"]["message"]


async def test_a_head_that_fled_from_its_vm_goes_back_once_the_node_has_served_for_a_while(
    storage: Storage,
) -> None:
    """What has just begun again may fail again, and each move is a pause of its VM."""
    await storage.build(**FRENCH_PAIR)
    volume = storage.volumes()[0]
    home, near, other = await storage.used_at_its_head(volume)
    clock = LaterClock()
    for site in storage.sites.values():
        site.site.clock, site.site.age_of = clock, lambda _site: 0.0
    await storage.keepers[home].open_at(storage.volumes()[0], other, "its IO-node is lost")

    async def is_back(*, after_s: float) -> bool:
        clock.ahead_s += after_s
        for _ in range(5):
            await storage.look()
        return storage.volumes()[0].head == near.node_id

    assert not await is_back(after_s=0.0)
    assert not await is_back(after_s=NEAR_REST_S - 10.0)
    status = storage.sites[home].index.value(NodeStatus, near.node_id)
    begun_again = replace(status, connected=True, since_s=clock.now_s())
    await storage.sites[home].site.save(begun_again)
    await storage.settle()
    assert not await is_back(after_s=NEAR_REST_S - 10.0), "it broke off meanwhile"
    assert await is_back(after_s=20.0)


async def test_a_head_follows_its_vm_at_once_and_leaves_a_drained_node_at_once(
    storage: Storage,
) -> None:
    await storage.build(**FRENCH_PAIR)
    volume = storage.volumes()[0]
    home, near, other = await storage.used_at_its_head(volume)
    site = storage.sites[home].site
    user = next(v for v in site.index.values(Vm) if v.vm_id == storage.volumes()[0].vm_id)
    now_s = site.clock.now_s()
    status = storage.sites[other.site_id].index.value(NodeStatus, other.node_id)
    await storage.sites[other.site_id].site.save(replace(status, since_s=now_s))
    await site.save(replace(user, site_id=other.site_id))
    await storage.until(lambda: storage.volumes()[0].head == other.node_id)
    await site.save(replace(user, site_id=home))
    await storage.until(lambda: storage.volumes()[0].head == near.node_id)

    await storage.keepers[home].open_at(storage.volumes()[0], other, "its IO-node is lost")
    await storage.until(lambda: is_settled(storage.volumes()[0]))
    draining = storage.sites[other.site_id].index.value(Node, other.node_id)
    await storage.sites[other.site_id].site.save(replace(draining, maintenance=True, draining=True))
    await storage.until(lambda: storage.volumes()[0].head == near.node_id)
