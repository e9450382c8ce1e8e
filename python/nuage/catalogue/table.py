"""The store as a machine: every rule of a write, no thread, file or clock.

Each driver keeps two tables: one that leads (the writer stages into it, and rolls back when
the disk refuses) and one that readers see (events are applied to it once durable). Records
are shared between both, only the indexes exist twice.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import assert_never

from nuage.catalogue import codec
from nuage.catalogue.store import (
    CHANGES_PER_WRITE_MAX,
    WRITE_BYTES_MAX,
    Change,
    Delete,
    Event,
    LostRace,
    NameTaken,
    Put,
)
from nuage.errors import Conflict, InvalidRequest, NotFound, StaleEpoch
from nuage.ids import SiteId
from nuage.model.record import KINDS, Record


@dataclass(frozen=True, slots=True)
class PreparedPut:
    """A Put with everything that needs no knowledge of the store worked out."""

    kind: str
    id: str
    epoch: int
    body: bytes
    put: Put


Prepared = tuple[PreparedPut | Delete, ...]


@dataclass(frozen=True, slots=True)
class Staged:
    """What one unit did: its events, their bodies (None: deleted), what was there before."""

    events: tuple[Event, ...]
    bodies: tuple[bytes | None, ...]
    previous: tuple[Record | None, ...]


def prepare(changes: Sequence[Change]) -> Prepared:
    """Check and encode a unit; done by the caller, so that the writer only stores.

    Raises:
        InvalidRequest: the unit is empty, too large, or names an unknown kind.
    """
    if not 1 <= len(changes) <= CHANGES_PER_WRITE_MAX:
        raise InvalidRequest(
            f"a write has 1 to {CHANGES_PER_WRITE_MAX} changes, not {len(changes)}",
            field="changes",
            hint="split it into units that may each succeed alone",
        )
    prepared: list[PreparedPut | Delete] = []
    size_bytes = 0
    for change in changes:
        match change:
            case Put():
                kind, body = codec.kind_of(change.value), codec.encode_value(change.value)
                epoch = codec.epoch_of(change.value) if change.epoch is None else change.epoch
                size_bytes += len(body)
                if codec.bears_epoch(change.value) and epoch != codec.epoch_of(change.value):
                    raise InvalidRequest(
                        f"{kind} bears epoch {codec.epoch_of(change.value)}, not {epoch}",
                        field="epoch",
                    )
                prepared.append(PreparedPut(kind, codec.id_of(change.value), epoch, body, change))
            case Delete():
                codec.require_kind(change.kind)
                prepared.append(change)
            case _:
                assert_never(change)
    if size_bytes > WRITE_BYTES_MAX:
        raise InvalidRequest(
            f"the values of one write take {size_bytes} bytes, more than {WRITE_BYTES_MAX}",
            field="changes",
        )
    return tuple(prepared)


class Table:
    """The records of one site with their indexes and the revision they stand at."""

    def __init__(self, site: SiteId, *, indexed: bool = True) -> None:
        self.site = site
        self._indexed = indexed  # False: only ever read whole, or by id
        self.revision = 0
        self._records: dict[str, dict[str, Record]] = {kind: {} for kind in KINDS}
        self._by_iaas: dict[tuple[str, str], dict[str, None]] = {}
        self._by_name: dict[tuple[str, str], dict[str, None]] = {}

    def find(self, kind: str, id: str) -> Record | None:
        """Return the record, or None."""
        codec.require_kind(kind)
        return self._records[kind].get(id)

    def select(
        self,
        kind: str,
        *,
        iaas_id: str | None = None,
        name: str | None = None,
        where: Callable[[Record], bool] | None = None,
    ) -> tuple[Record, ...]:
        """Return the records that match, ordered by id."""
        codec.require_kind(kind)
        records = self._records[kind]
        ids: Iterable[str]
        if name is not None:
            ids = self._by_name.get((kind, name), ())
        elif iaas_id is not None:
            ids = self._by_iaas.get((kind, iaas_id), ())
        else:
            ids = records
        return tuple(
            record
            for record in (records[id] for id in sorted(ids))
            if (iaas_id is None or codec.iaas_of(record.value) == iaas_id)
            and (where is None or where(record))
        )

    def all_records(self) -> tuple[Record, ...]:
        """Return every record, in no particular order."""
        return tuple(record for records in self._records.values() for record in records.values())

    def stage(self, unit: Prepared, now_s: float) -> Staged:
        """Check and apply one unit; on any error nothing of it stays.

        Raises:
            LostRace, NameTaken, StaleEpoch, NotFound: see `Catalogue.write`.
        """
        events: list[Event] = []
        bodies: list[bytes | None] = []
        previous: list[Record | None] = []
        try:
            for change in unit:
                before = self._records[change.kind].get(change.id)
                event = self._event(change, before, now_s)
                self.apply(event)
                events.append(event)
                previous.append(before)
                bodies.append(change.body if isinstance(change, PreparedPut) else None)
        except (Conflict, NotFound):
            self.undo(Staged(tuple(events), (), tuple(previous)))
            raise
        return Staged(tuple(events), tuple(bodies), tuple(previous))

    def undo(self, staged: Staged) -> None:
        """Take back the last staged unit (several: in reverse order)."""
        for event, before in zip(reversed(staged.events), reversed(staged.previous), strict=True):
            if event.revision != self.revision:
                raise AssertionError("units are undone in reverse order")
            self._replace(event.kind, event.id, before)
            self.revision -= 1

    def apply(self, event: Event) -> None:
        """Take over an event that was decided elsewhere; revisions have no gaps."""
        if event.revision != self.revision + 1:
            raise AssertionError(f"event {event.revision} after revision {self.revision}")
        self._replace(event.kind, event.id, event.record)
        self.revision = event.revision

    def restore(self, record: Record) -> None:
        """Load a record as it was stored; the revision is set by the loader."""
        self._replace(record.kind, record.id, record)

    def forget(self, kind: str, id: str) -> None:
        """Drop a record without an event (replicas only)."""
        self._replace(kind, id, None)

    def _event(self, change: PreparedPut | Delete, before: Record | None, now_s: float) -> Event:
        revision = self.revision + 1
        stored_revision = before.revision if before else 0
        if isinstance(change, Delete):
            if before is None and change.expected is None:
                raise NotFound(change.kind, change.id)
            _require_expected(change.kind, change.id, change.expected, stored_revision)
            if before is None:
                raise NotFound(change.kind, change.id)
            return Event(
                revision=revision, kind=change.kind, id=change.id, home=self.site,
                epoch=before.epoch, changed_s=now_s, record=None,
            )  # fmt: skip
        _require_expected(change.kind, change.id, change.put.expected, stored_revision)
        if before is not None and change.epoch < before.epoch:
            raise StaleEpoch(
                f"{change.kind} {change.id} is at epoch {before.epoch}, the write at "
                f"{change.epoch}",
                epoch=before.epoch,
            )
        if change.put.unique_name:
            self._require_name_free(change)
        record = Record(
            kind=change.kind, id=change.id, home=self.site, revision=revision,
            epoch=change.epoch, changed_s=now_s, value=change.put.value,
        )  # fmt: skip
        return Event(
            revision=revision, kind=change.kind, id=change.id, home=self.site,
            epoch=change.epoch, changed_s=now_s, record=record,
        )  # fmt: skip

    def _require_name_free(self, change: PreparedPut) -> None:
        name, iaas_id = codec.name_of(change.put.value), codec.iaas_of(change.put.value)
        if not name:
            return  # a port, say: it is known by its id alone
        for holder_id in self._by_name.get((change.kind, name), ()):
            holder = self._records[change.kind][holder_id]
            if holder_id != change.id and codec.iaas_of(holder.value) == iaas_id:
                raise NameTaken(change.kind, name, holder_id=holder_id, revision=holder.revision)

    def _replace(self, kind: str, id: str, record: Record | None) -> None:
        records = self._records[kind]
        before = records.get(id) if self._indexed else None
        if before is not None:
            _discard(self._by_iaas, (kind, codec.iaas_of(before.value)), id)
            _discard(self._by_name, (kind, codec.name_of(before.value)), id)
        if record is None:
            records.pop(id, None)
            return
        records[id] = record
        if not self._indexed:
            return
        self._by_iaas.setdefault((kind, codec.iaas_of(record.value)), {})[id] = None
        self._by_name.setdefault((kind, codec.name_of(record.value)), {})[id] = None


def _discard(index: dict[tuple[str, str], dict[str, None]], key: tuple[str, str], id: str) -> None:
    ids = index[key]
    del ids[id]
    if not ids:
        del index[key]


def _require_expected(kind: str, id: str, expected: int | None, stored_revision: int) -> None:
    if expected is None or expected == stored_revision:
        return
    stored = f"at revision {stored_revision}" if stored_revision else "not stored"
    wanted = f"revision {expected}" if expected else "no such object"
    raise LostRace(
        f"{kind} {id} is {stored}, the write expected {wanted}",
        revision=stored_revision,
        hint="it changed at the same moment: look at it, and ask again",
    )
