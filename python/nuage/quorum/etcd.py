"""The quorum on etcd, with a member in each site.

Each rule is a compare of one transaction, so that two sites can never both win: the owner is
as it was read, the new owner's lease exists, and for a takeover the lease keys of the old owner
and of its heir are absent. A renewal is a keep-alive *and then* a read through the majority: an
old leader that was cut off may still answer keep-alives, but it cannot answer such a read; what it
could have answered just before is covered by `election_s` in the margin (`model`).

    /nuage/quorum/lease/<site>          the holder's session, bound to an etcd lease
    /nuage/quorum/owner/<kind>/<id>     {"owner": site or "", "epoch": n, "heir": site}
"""

import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from math import ceil
from typing import Final

import msgspec

from nuage.errors import UNREADABLE, Conflict, CorruptData, NuageError, TimedOut
from nuage.etcd.client import EtcdClient, WatchCompacted
from nuage.etcd.messages import (
    Compare,
    CompareTarget,
    EventType,
    KeyEvent,
    KeyValue,
    PutOp,
    RangeOp,
    absent,
    unchanged,
)
from nuage.ids import SiteId
from nuage.quorum.model import NOBODY, LeaseTiming, Ownership, QuorumEvent, SiteLease
from nuage.quorum.state import (
    holders_before,
    lease_held_by_another,
    lease_lost,
    lease_still_held,
    require_heir,
    require_owner,
)

ROOT: Final = b"/nuage/quorum/"
_LEASES: Final = ROOT + b"lease/"
_OWNERS: Final = ROOT + b"owner/"
PAGE_KEYS: Final = 1000
TRIES_MAX: Final = 8  # of a transaction that others overtook; each try reads anew


class _Owner(msgspec.Struct, frozen=True, omit_defaults=True):
    owner: SiteId
    epoch: int
    heir: SiteId = NOBODY


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one read found: the owner's key and the new owner's lease."""

    owner: KeyValue | None
    to_lease: KeyValue | None

    @property
    def ownership(self) -> Ownership | None:
        """Return who owns the object."""
        return None if self.owner is None else _ownership(self.owner)

    def as_seen(self, key: bytes) -> Compare:
        """Return the condition that the owner is still as it was read."""
        return absent(key) if self.owner is None else unchanged(self.owner)


class EtcdQuorum:
    """One site's door to the quorum. The client is the caller's to close."""

    def __init__(self, site: SiteId, client: EtcdClient, *, timing: LeaseTiming) -> None:
        self.site = site
        self._client = client
        self._timing = timing
        self._lease_id = 0

    async def renew_site_lease(self, session: str) -> float:
        """Renew or take this site's lease; return its seconds."""
        if self._lease_id:
            ttl_s = await self._keep_alive(session, self._lease_id)
            if ttl_s:
                return ttl_s
            self._lease_id = 0
        granted = await self._client.lease_grant(ceil(self._timing.ttl_s))
        key = _lease_key(self.site)
        result = await self._client.txn(
            (absent(key),), (PutOp(key, session.encode(), granted.id),), (RangeOp(key),)
        )
        if result.succeeded:
            self._lease_id = granted.id
            return float(granted.ttl_s)
        with contextlib.suppress(NuageError):  # it would expire by itself
            await self._client.lease_revoke(granted.id)
        (held,) = result.kvs(0)
        if held.value != session.encode():
            raise lease_held_by_another(self.site)
        ttl_s = await self._keep_alive(session, held.lease)  # our own, from before a restart
        if not ttl_s:
            raise lease_lost(self.site)
        self._lease_id = held.lease
        return ttl_s

    async def site_leases(self) -> tuple[SiteLease, ...]:
        """Return the leases held now."""
        found: list[SiteLease] = []
        for kv in (await self._client.range(_LEASES, prefix=True)).kvs:
            remaining_s = await self._client.lease_remaining_s(kv.lease)
            site = SiteId(kv.key[len(_LEASES) :].decode())
            if remaining_s > 0:
                session = kv.value.decode()
                found.append(SiteLease(site=site, session=session, remaining_s=remaining_s))
        return tuple(found)

    async def holders(self) -> frozenset[SiteId]:
        """Return the sites that hold a lease: etcd deletes a key with its lease."""
        found = await self._client.range(_LEASES, prefix=True)
        return frozenset(SiteId(kv.key[len(_LEASES) :].decode()) for kv in found.kvs)

    async def claim(self, kind: str, id: str, owner: SiteId, *, expected_epoch: int) -> Ownership:
        """Make `owner` own an object that nobody owns."""
        return await self._move(
            kind, id, from_site=NOBODY, to_site=owner, expected_epoch=expected_epoch
        )

    async def owner(self, kind: str, id: str) -> Ownership | None:
        """Return who owns an object."""
        kvs = (await self._client.range(_owner_key(kind, id))).kvs
        return _ownership(kvs[0]) if kvs else None

    async def owners_of(self, site: SiteId) -> tuple[Ownership, ...]:
        """Return what a site owns."""
        return tuple(owned for owned in await self.all_owners() if owned.owner == site)

    async def all_owners(self) -> tuple[Ownership, ...]:
        """Return every ownership known, released ones too, by kind and id."""
        found: list[Ownership] = []
        key, more, end = _OWNERS, True, _OWNERS[:-1] + b"0"
        while more:
            page = await self._client.range(key, range_end=end, limit=PAGE_KEYS)
            found += [_ownership(kv) for kv in page.kvs]
            more = page.more
            key = page.kvs[-1].key + b"\x00" if page.kvs else end
        return tuple(found)

    async def transfer(
        self, kind: str, id: str, *, from_site: SiteId, to_site: SiteId, expected_epoch: int
    ) -> Ownership:
        """Hand an object over."""
        return await self._move(
            kind, id, from_site=from_site, to_site=to_site, expected_epoch=expected_epoch
        )

    async def takeover(
        self, kind: str, id: str, *, from_site: SiteId, by_site: SiteId, expected_epoch: int
    ) -> Ownership:
        """Take an object from a site whose lease has expired."""
        return await self._move(
            kind, id, from_site=from_site, to_site=by_site, expected_epoch=expected_epoch,
            from_expired=True,
        )  # fmt: skip

    async def promise(
        self, kind: str, id: str, *, owner: SiteId, heir: SiteId, expected_epoch: int
    ) -> Ownership:
        """Name who an object may go to."""
        wanted = Ownership(kind=kind, id=id, owner=owner, epoch=expected_epoch, heir=heir)
        for _ in range(TRIES_MAX):
            seen = await self._see(kind, id, heir)
            if seen.ownership == wanted:
                return wanted
            require_owner(seen.ownership, kind, id, owner, expected_epoch)
            compares = [seen.as_seen(_owner_key(kind, id))]
            if heir != NOBODY:
                if seen.to_lease is None:
                    raise lease_lost(heir)
                compares.append(unchanged(seen.to_lease))
            if await self._put(wanted, tuple(compares)):
                return wanted
        raise _overtaken(kind, id)

    async def inherit(
        self, kind: str, id: str, *, owner: SiteId, heir: SiteId, expected_epoch: int
    ) -> Ownership:
        """Own what was promised and has come."""
        wanted = Ownership(kind=kind, id=id, owner=heir, epoch=expected_epoch + 1)
        for _ in range(TRIES_MAX):
            seen = await self._see(kind, id, heir)
            if seen.ownership == wanted:
                return wanted
            require_owner(seen.ownership, kind, id, owner, expected_epoch)
            require_heir(seen.ownership, kind, id, heir)
            if seen.to_lease is None:
                raise lease_lost(heir)
            as_seen = seen.as_seen(_owner_key(kind, id))
            if await self._put(wanted, (as_seen, unchanged(seen.to_lease))):
                return wanted
        raise _overtaken(kind, id)

    async def release(self, kind: str, id: str, *, owner: SiteId, expected_epoch: int) -> None:
        """Give an object up for good."""
        released = Ownership(kind=kind, id=id, owner=NOBODY, epoch=expected_epoch)
        for _ in range(TRIES_MAX):
            seen = await self._see(kind, id, NOBODY)
            current = seen.ownership
            if current == released:
                return
            require_owner(current, kind, id, owner, expected_epoch)
            if seen.owner is not None and await self._put(released, (unchanged(seen.owner),)):
                return
        raise _overtaken(kind, id)

    async def raise_epochs(self, known: Iterable[Ownership]) -> tuple[Ownership, ...]:
        """Restore what catalogues know and the quorum does not; return what was restored.

        Only within `recover_lost_majority`, before any site renews its lease: the last writes
        before the disaster may be missing, and an epoch must never be given out twice. An
        object of which the quorum knows this epoch or a higher one is left alone.
        """
        restored: list[Ownership] = []
        for ownership in known:
            for _ in range(TRIES_MAX):
                seen = await self._see(ownership.kind, ownership.id, NOBODY)
                if seen.owner is not None and _ownership(seen.owner).epoch >= ownership.epoch:
                    break
                key = _owner_key(ownership.kind, ownership.id)
                if await self._put(ownership, (seen.as_seen(key),)):
                    restored.append(ownership)
                    break
            else:
                raise _overtaken(ownership.kind, ownership.id)
        return tuple(restored)

    async def watch(self) -> AsyncIterator[QuorumEvent]:
        """Yield what changes from now on; after a gap, everything anew."""
        revision = (await self._client.range(ROOT)).header.revision
        while True:
            try:
                changes = self._client.watch(ROOT, prefix=True, start_revision=revision + 1)
                async for events in changes:
                    for event in events:
                        yield _quorum_event(event)
            except WatchCompacted:
                everything = await self._client.range(ROOT, prefix=True)
                revision = everything.header.revision
                for kv in everything.kvs:
                    yield _quorum_event(KeyEvent(kv))

    async def close(self) -> None:
        """Nothing of its own to release."""

    async def _keep_alive(self, session: str, lease_id: int) -> float:
        """Renew, then let the majority confirm; 0 when the lease is gone."""
        ttl_s = await self._client.lease_keepalive(lease_id)
        if ttl_s <= 0:
            return 0.0
        key = _lease_key(self.site)
        held = Compare(key, CompareTarget.VALUE, session.encode())
        confirmed = await self._client.txn((held,), (RangeOp(key),), read_only=True)
        if not confirmed.succeeded or confirmed.kvs(0)[0].lease != lease_id:
            return 0.0
        return float(ttl_s)

    async def _move(
        self,
        kind: str,
        id: str,
        *,
        from_site: SiteId,
        to_site: SiteId,
        expected_epoch: int,
        from_expired: bool = False,
    ) -> Ownership:
        wanted = Ownership(kind=kind, id=id, owner=to_site, epoch=expected_epoch + 1)
        for _ in range(TRIES_MAX):
            seen = await self._see(kind, id, to_site)
            current = seen.ownership
            if current == wanted:
                return wanted
            require_owner(current, kind, id, from_site, expected_epoch)
            if seen.to_lease is None:
                raise lease_lost(to_site)
            before = holders_before(current, to_site) if from_expired else ()
            for site in before:
                if (await self._client.range(_lease_key(site))).kvs:
                    raise lease_still_held(site)
            compares = (
                seen.as_seen(_owner_key(kind, id)),
                unchanged(seen.to_lease),
                *(absent(_lease_key(site)) for site in before),
            )
            if await self._put(wanted, compares):
                return wanted
        raise _overtaken(kind, id)

    async def _see(self, kind: str, id: str, to_site: SiteId) -> _Seen:
        """Read who owns an object, and the lease of who shall."""
        result = await self._client.txn(
            (), (RangeOp(_owner_key(kind, id)), RangeOp(_lease_key(to_site))), read_only=True
        )
        owner, to_lease = (next(iter(result.kvs(i)), None) for i in range(2))
        return _Seen(owner, to_lease)

    async def _put(self, wanted: Ownership, compares: tuple[Compare, ...]) -> bool:
        """Write an ownership when the compares hold; tell whether they did."""
        stored = msgspec.json.encode(_Owner(wanted.owner, wanted.epoch, wanted.heir))
        operation = PutOp(_owner_key(wanted.kind, wanted.id), stored)
        try:
            return (await self._client.txn(compares, (operation,))).succeeded
        except TimedOut:
            # Only this caller writes this owner under this epoch: found there, it is ours.
            if await self.owner(wanted.kind, wanted.id) == wanted:
                return True
            raise


def _overtaken(kind: str, id: str) -> Conflict:
    return Conflict(f"{kind} {id} changed {TRIES_MAX} times meanwhile", hint="try again")


def _lease_key(site: SiteId) -> bytes:
    return _LEASES + site.encode()


def _owner_key(kind: str, id: str) -> bytes:
    return _OWNERS + f"{kind}/{id}".encode()


def _ownership(kv: KeyValue) -> Ownership:
    where = kv.key.decode(errors="replace")
    kind, _, id = where[len(_OWNERS) :].partition("/")
    try:
        stored = msgspec.json.decode(kv.value, type=_Owner)
    except UNREADABLE as error:
        raise CorruptData(f"etcd's {where} is no ownership: {error}", where=where) from error
    return Ownership(kind=kind, id=id, owner=stored.owner, epoch=stored.epoch, heir=stored.heir)


def _quorum_event(event: KeyEvent) -> QuorumEvent:
    if event.kv.key.startswith(_LEASES):
        site = SiteId(event.kv.key[len(_LEASES) :].decode())
        return QuorumEvent(site=site, lease_held=event.type is EventType.PUT)
    return QuorumEvent(ownership=_ownership(event.kv))
