"""Which of a site's controllers serves: one at a time, by a lease that ends early for it."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from tests.contract.catalogue.catalogue_makers import MARNE, HandClock

from nuage.daemon.configuration import ControllerConfiguration
from nuage.daemon.seat import SEAT_MARGIN_S, SEAT_TTL_S, Seat, has_seat, open_own_etcd
from nuage.errors import InvalidRequest, Unavailable
from nuage.etcd.client import EtcdClient
from nuage.etcd.messages import (
    Compare,
    KeyValue,
    Lease,
    PutOp,
    RangeResult,
    TxnResult,
    absent,
)
from nuage.model.infrastructure import Datacenter, Operator


@dataclass
class OneKey:
    """An etcd with one key and its lease, by a clock moved by hand."""

    clock: HandClock
    value: bytes = b""
    lease_id: int = 0
    ends_s: float = 0.0
    given: int = 0
    is_away: bool = False
    revoked: list[int] = field(default_factory=list)

    def _look(self) -> None:
        if self.is_away:
            raise Unavailable("etcd does not answer")
        if self.lease_id and self.clock.monotonic_s() >= self.ends_s:
            self.lease_id = 0

    async def range(self, key: bytes) -> RangeResult:
        self._look()
        found = RangeResult(kvs=(KeyValue(key, self.value),) if self.lease_id else ())
        await asyncio.sleep(0)  # others ask meanwhile
        return found

    async def lease_grant(self, ttl_s: int) -> Lease:
        self._look()
        self.given += 1
        return Lease(id=self.given, ttl_s=ttl_s)

    async def txn(self, compares: tuple[Compare, ...], success: tuple[PutOp, ...]) -> TxnResult:
        self._look()
        if self.lease_id and absent(success[0].key) in compares:
            return TxnResult(succeeded=False)
        self.value, self.lease_id = success[0].value, success[0].lease
        self.ends_s = self.clock.monotonic_s() + SEAT_TTL_S
        return TxnResult(succeeded=True)

    async def lease_keepalive(self, lease_id: int) -> int:
        self._look()
        if lease_id != self.lease_id:
            return 0
        self.ends_s = self.clock.monotonic_s() + SEAT_TTL_S
        return SEAT_TTL_S

    async def lease_revoke(self, lease_id: int) -> None:
        self._look()
        self.revoked.append(lease_id)
        if lease_id == self.lease_id:
            self.lease_id = 0

    async def close(self) -> None:
        return


class Ended(Exception):
    """The process has ended itself."""


def seat(etcd: OneKey, clock: HandClock, name: str) -> Seat:
    def end() -> None:
        raise Ended(name)

    return Seat(MARNE, cast(EtcdClient, etcd), clock, address=name, stand_up=end)


async def test_one_controller_serves_and_the_other_sits_down_when_it_leaves() -> None:
    clock = HandClock()
    etcd = OneKey(clock)
    first, second = seat(etcd, clock, "first"), seat(etcd, clock, "second")
    assert await first._try()
    assert not await second._try()
    assert etcd.value == b"first"
    await first.leave()
    await second.take()
    assert etcd.value == b"second"
    await second.leave()


async def test_of_two_that_find_the_seat_free_at_one_moment_one_takes_it() -> None:
    clock = HandClock()
    etcd = OneKey(clock)
    both = [seat(etcd, clock, name) for name in ("first", "second")]
    taken = await asyncio.gather(*(each._try() for each in both))
    assert sorted(taken) == [False, True]
    assert len(etcd.revoked) == 1, "the lease of the other is given back"


async def test_a_controller_that_is_cut_off_ends_before_another_may_sit_down() -> None:
    clock = HandClock()
    etcd = OneKey(clock)
    first, second = seat(etcd, clock, "first"), seat(etcd, clock, "second")
    assert await first._try()
    took_s = clock.monotonic_s()
    away, etcd.is_away = etcd, True
    with pytest.raises(Ended, match="first"):
        await first.hold()
    ended_s = clock.monotonic_s()
    away.is_away = False
    assert ended_s <= took_s + SEAT_TTL_S - SEAT_MARGIN_S + 2.0
    assert not await second._try(), "its lease still lasts when it has ended"
    clock.time_s = took_s + SEAT_TTL_S
    assert await second._try()


async def test_a_controller_that_slept_through_its_lease_ends_without_asking() -> None:
    clock = HandClock()
    etcd = OneKey(clock)
    first, second = seat(etcd, clock, "first"), seat(etcd, clock, "second")
    assert await first._try()
    clock.time_s += 2 * SEAT_TTL_S
    assert await second._try()
    with pytest.raises(Ended, match="first"):
        await first.hold()
    assert etcd.value == b"second"


async def test_a_seat_is_renewed_for_as_long_as_etcd_answers() -> None:
    clock = HandClock()
    etcd = OneKey(clock)
    first = seat(etcd, clock, "first")
    assert await first._try()
    holding = asyncio.create_task(first.hold())
    for _ in range(400):  # each turn of the loop is a renewal at most: twenty leases' time
        await asyncio.sleep(0)
    assert clock.monotonic_s() > 1_000_000.0 + 5 * SEAT_TTL_S
    assert not holding.done()
    assert not await seat(etcd, clock, "second")._try()
    holding.cancel()


async def test_who_stands_by_outlives_an_etcd_that_is_away() -> None:
    clock = HandClock()
    etcd = OneKey(clock, is_away=True)
    first = seat(etcd, clock, "first")
    taking = asyncio.create_task(first.take())
    for _ in range(50):
        await asyncio.sleep(0)
    assert not taking.done()
    etcd.is_away = False
    await asyncio.wait_for(taking, 30)
    await first.leave()


def configured(catalogue: str) -> ControllerConfiguration:
    datacenter = Datacenter(
        site_id=MARNE, place="Marne", country="FR", operator=Operator("Marne", "FR"), tier=2,
        power_capacity_watts=18_000.0, latitude_deg=48.8, longitude_deg=2.6,
        addresses=("127.0.0.1:7401",),
    )  # fmt: skip
    return ControllerConfiguration(
        state_dir=Path("/nowhere"), trust_dir=Path("/nowhere"), datacenter=datacenter,
        channel_listen="127.0.0.1:7401", join_listen="127.0.0.1:7402", api_listen=(),
        catalogue=catalogue,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("catalogue", "why"),
    [
        ("sqlit", "client URLs of the site's etcd"),
        ("etcd:2379", "client URLs of the site's etcd"),
        ("http://10.0.0.5:2379", "in clear"),
        ("http://127.0.0.1:2379,http://10.0.0.5:2379", "in clear"),
        ("https://", "client URLs of the site's etcd"),
    ],
)
def test_a_catalogue_that_is_no_etcd_or_in_clear_is_refused_by_name(
    catalogue: str, why: str
) -> None:
    with pytest.raises(InvalidRequest, match=why) as refused:
        open_own_etcd(configured(catalogue))
    assert refused.value.field == "catalogue"


async def test_a_site_with_one_controller_has_no_seat_to_take() -> None:
    assert not has_seat(configured("sqlite"))
    client: Any = open_own_etcd(configured("http://127.0.0.1:2379,http://[::1]:2379"))
    assert client.endpoints == ("http://127.0.0.1:2379", "http://[::1]:2379")
    await client.close()
