"""The controller's side of the fabric: what it tells its RBridges when keys roll."""

import asyncio
from typing import Any, cast

from tests.contract.catalogue.catalogue_makers import HandClock
from tests.unit.iaas.iaas_makers import MARNE, datacenter, node, record

from nuage.clock import SystemClock
from nuage.daemon.fabric_desk import FabricDesk
from nuage.daemon.key_desk import KeyDesk
from nuage.daemon.process import Tasks
from nuage.iaas.fabric_keys import FabricKeySet, KeyRoll, fabric_key, key_id_of
from nuage.iaas.fabric_wishes import FabricContext
from nuage.iaas.index import FederationIndex
from nuage.ids import NodeId, SiteId
from nuage.model.fabric import FabricWish
from nuage.model.infrastructure import NodeRole
from nuage.model.trust import SiteTrust
from nuage.trust.shared_secrets import SharedSecrets

SECRET = b"s" * 32
VNODE = NodeId("marne-vnode-1")


class InOrder(HandClock):
    """Wakes sleepers in the order of their times, once nobody else has anything to do."""

    def __init__(self) -> None:
        super().__init__()
        self._due: list[float] = []

    async def sleep(self, delay_s: float) -> None:
        due = self.time_s + delay_s
        self._due.append(due)
        for _ in range(20):
            await SystemClock().sleep(0)
        while due > min(self._due):
            await SystemClock().sleep(0)
        self._due.remove(due)
        self.time_s = max(self.time_s, due)


def trust(site: str, generation: int) -> SiteTrust:
    return SiteTrust(
        site_id=SiteId(site), authority_pem="", signers_pem="", revocations_pem="",
        key_generation=generation,
    )  # fmt: skip


def signs_and_accepts(wish: FabricWish) -> tuple[int, list[int]]:
    assert wish.key == fabric_key(SECRET, wish.key_id - 1)
    return wish.key_id, [number for number, _ in wish.old_keys]


async def test_a_revocation_anywhere_rolls_the_keys_of_this_sites_rbridges() -> None:
    index, clock, tasks = FederationIndex(MARNE), InOrder(), Tasks()
    context = FabricContext(index, MARNE, FabricKeySet(""), SharedSecrets({0: SECRET}))
    keys = KeyDesk(
        index, KeyRoll(SharedSecrets({0: SECRET})), tasks, clock,
        usable=lambda generation: generation,
    )  # fmt: skip
    desk = FabricDesk(
        context, cast(Any, None), tasks, clock, keys=keys.keys,
        edge_lives=lambda _node: None, announce=lambda *_words: None,
    )  # fmt: skip
    rolls: list[tuple[int, ...]] = []

    def rolled() -> None:
        rolls.append(keys.generations())
        desk.keys_changed()

    keys.on_roll = rolled
    desk.on_change(index.put(record(datacenter("marne"))))
    for site in ("marne", "lyon"):
        desk.on_change(index.put(record(trust(site, 0), home=site)))
    desk.on_change(index.put(record(node("marne", NodeRole.VNODE))))
    keys.look()
    seen: list[tuple[int, list[int]]] = []
    first_told, all_told = asyncio.Event(), asyncio.Event()

    async def follow() -> None:
        async for wish in desk._slot(VNODE).follow():
            seen.append(signs_and_accepts(wish))
            first_told.set()
            if seen[-1] == (key_id_of(1), []):
                all_told.set()

    following = asyncio.create_task(follow())
    await asyncio.wait_for(first_told.wait(), 30)
    clock.time_s += 60.0
    desk.on_change(index.put(record(trust("lyon", 1), home="lyon", revision=2)))
    keys.look()
    await asyncio.wait_for(all_told.wait(), 30)
    following.cancel()
    await tasks.close()
    old, new = key_id_of(0), key_id_of(1)
    assert seen == [(old, []), (old, [new]), (new, [old]), (new, [])]
    assert rolls == [(0,), (0, 1), (1, 0), (1,)]
