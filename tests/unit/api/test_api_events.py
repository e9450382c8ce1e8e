"""The live event stream: what its readers get."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import TypeVar

from tests.contract.catalogue.catalogue_makers import HandClock

from nuage.api.events import OWNERS_KEPT_MAX, Announcement, EventRing, Owners, may_see
from nuage.iaas.index import FederationIndex
from nuage.ids import IaasId, PoolId, SiteId, UserId
from nuage.model.identity import Grant, Role
from nuage.model.network import PublicAddress
from nuage.model.record import Record
from nuage.trust.permissions import Principal

T = TypeVar("T")
MARNE, LYON = SiteId("marne"), SiteId("lyon")


def told(ring: EventRing, *numbers: int) -> None:
    for number in numbers:
        ring.announce("vm", f"vm-{number}", "created", "")


def heard(ring: EventRing, number: int) -> None:
    ring.take(
        Announcement(site=LYON, number=number, at_s=0.0, kind="vm", id="x", what="y", text="")
    )


async def taken(items: AsyncIterator[T], count: int) -> list[T]:
    return [await anext(items) for _ in range(count)]


async def test_a_reader_gets_the_last_lines_and_then_each_new_one_once() -> None:
    ring = EventRing(MARNE, HandClock())
    told(ring, 1, 2, 3)
    lines = ring.follow(last=2)
    assert [line.id for line in await taken(lines, 2)] == ["vm-2", "vm-3"]
    told(ring, 4)
    heard(ring, 9)
    assert [(line.site, line.number) for line in await taken(lines, 2)] == [(MARNE, 4), (LYON, 9)]
    waiting = asyncio.ensure_future(anext(lines))
    await asyncio.sleep(0)
    told(ring, 5)
    assert (await waiting).number == 5


async def test_a_reader_too_slow_misses_the_oldest_lines_only() -> None:
    ring = EventRing(MARNE, HandClock(), kept_max=3)
    lines = ring.follow()
    waiting = asyncio.ensure_future(anext(lines))
    await asyncio.sleep(0)
    told(ring, 1)
    assert (await waiting).number == 1
    told(ring, *range(2, 9))
    assert [line.number for line in await taken(lines, 3)] == [6, 7, 8]


async def test_other_sites_get_this_sites_lines_together_and_nobody_elses() -> None:
    ring = EventRing(MARNE, HandClock())
    told(ring, 1)
    groups = ring.follow_own()
    waiting = asyncio.ensure_future(anext(groups))
    await asyncio.sleep(0)
    heard(ring, 7)
    told(ring, 2, 3)
    heard(ring, 8)
    assert [line.number for line in await waiting] == [2, 3]
    told(ring, 4)
    assert [line.number for line in await anext(groups)] == [4]


ACME, RIVAL = IaasId("iaas-acme"), IaasId("iaas-rival")


def who(role: Role, scope: str) -> Principal:
    return Principal(UserId("user-1"), "somebody", (Grant(role, scope),))


def about(kind: str, iaas_id: IaasId | None = None) -> Announcement:
    return Announcement(
        site=MARNE, number=1, at_s=0.0, kind=kind, id="x", what="y", text="", iaas_id=iaas_id
    )


def test_a_tenant_sees_lines_of_its_own_iaas_and_of_sites_and_no_others() -> None:
    tenant, nuage_admin = who(Role.IAAS_USER, ACME), who(Role.NUAGE_ADMIN, "*")
    shown = [about("vm", ACME), about("site"), about("image"), about("address-pool")]
    hidden = [about("vm", RIVAL), about("volume"), about("image", RIVAL), about("node")]
    assert all(may_see(tenant, line) for line in shown)
    assert not any(may_see(tenant, line) for line in hidden)
    assert all(may_see(nuage_admin, line) for line in (*shown, *hidden))
    assert may_see(who(Role.OPERATOR, MARNE), about("node"))
    assert not may_see(who(Role.OPERATOR, LYON), about("node"))


async def test_the_last_lines_are_counted_among_those_that_are_shown() -> None:
    ring = EventRing(MARNE, HandClock())
    for number in range(1, 5):
        ring.announce("vm", f"vm-{number}", "created", "", "", ACME if number % 2 else RIVAL)
    mine = partial(may_see, who(Role.IAAS_ADMIN, ACME))
    assert [line.id for line in ring.last(2, mine)] == ["vm-1", "vm-3"]
    lines = ring.follow(last=1, shown=mine)
    assert (await anext(lines)).id == "vm-3"
    ring.announce("vm", "vm-6", "created", "", "", RIVAL)
    ring.announce("vm", "vm-7", "created", "", "", ACME)
    assert (await anext(lines)).id == "vm-7"


def test_a_line_about_what_was_just_deleted_has_its_owner_still() -> None:
    index = FederationIndex(MARNE)
    owners = Owners(index)
    for number in range(OWNERS_KEPT_MAX + 1):
        name = f"203.0.{number // 256}.{number % 256}"
        value = PublicAddress(address=name, iaas_id=ACME, pool_id=PoolId("pool-1"))
        index.put(
            Record(
                kind="address", id=name, home=MARNE, revision=1, epoch=0, changed_s=0.0, value=value
            )
        )
        assert owners.of("address", name) == ACME
        owners.on_change(index.remove("address", name, MARNE))
    assert owners.of("address", name) == ACME
    assert owners.of("address", "203.0.0.0") is None  # so many later nobody tells of it


def test_a_line_about_what_has_no_record_is_nobodys_in_particular() -> None:
    """A datacenter joins, loses its lease, is revoked: its lines are of no kind of record."""
    assert Owners(FederationIndex(MARNE)).of("site", "lyon") is None
