"""The live event stream: what its readers get."""

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

from tests.contract.catalogue.catalogue_makers import HandClock

from nuage.api.events import Announcement, EventRing
from nuage.ids import SiteId

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
