"""The catalogue's contract: changes in, records and events out.

A catalogue belongs to one site and stores only what has its home there. Its revision is a
counter of that site: it rises by exactly one with each changed object, so that revisions
have no gaps and a reader that holds N has seen everything up to N. One call of `write` is
one atomic unit: all of its changes are stored, or none, and its revisions are consecutive.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from nuage.errors import Conflict
from nuage.ids import SiteId
from nuage.model.record import Noun, Record

# etcd takes 128 operations in one transaction: two a change, a few of our own.
CHANGES_PER_WRITE_MAX: Final = 60
# etcd refuses requests above 1.5 MiB; base64 adds a third, and a change is stored twice.
WRITE_BYTES_MAX: Final = 512 * 1024
EVENTS_PER_READ_MAX: Final = 1024

ABSENT: Final = 0  # as `expected`: the object must not exist yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """Store `value` under its own id.

    `expected` is the revision the caller read (`ABSENT`: must not exist; None: whatever is
    there). `unique_name` refuses the write when another object of the same kind and IaaS
    bears the name. `epoch` None takes the value's own epoch, 0 when it has none; give the
    owner's epoch for what moves along with a VM (its ports).
    """

    value: Noun
    expected: int | None = None
    unique_name: bool = False
    epoch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Remove an object; its history stays as long as it is kept."""

    kind: str
    id: str
    expected: int | None = None


Change: TypeAlias = Put | Delete


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One object changed. `record` is what it became, None when it was deleted.

    `epoch` is the record's, or the one the deleted object had.
    """

    revision: int
    kind: str
    id: str
    home: SiteId
    epoch: int
    changed_s: float
    record: Record | None


class NameTaken(Conflict):
    """Another object of this kind and IaaS bears the name; `holder_id` says which."""

    code = "name_taken"

    def __init__(self, kind: str, name: str, *, holder_id: str, revision: int) -> None:
        super().__init__(
            f"there is a {kind} named {name!r} already ({holder_id})",
            revision=revision,
            hint="choose another name",
        )
        self.holder_id = holder_id


class LostRace(Conflict):
    """Another write came between reading and writing; nothing of this one was done."""


class Compacted(Conflict):
    """Events after the revision asked are no longer kept (or never were).

    Read all records and resume from the catalogue's current revision. `revision` is the
    smallest `after_revision` that can be resumed from.
    """

    code = "compacted"

    def __init__(self, *, asked_revision: int, oldest_revision: int) -> None:
        super().__init__(
            f"changes after revision {asked_revision} are not kept; "
            f"the oldest that can be resumed from is {oldest_revision}",
            revision=oldest_revision,
            hint="read all records, then follow from the current revision",
        )
        self.asked_revision = asked_revision


class Catalogue(Protocol):
    """A site's store of typed objects. Every driver passes `tests/contract/catalogue`."""

    @property
    def site(self) -> SiteId:
        """Return the site whose catalogue this is."""
        ...

    @property
    def incarnation(self) -> str:
        """Return the name of this history; it changes when the store is made anew."""
        ...

    @property
    def revision(self) -> int:
        """Return the revision of the last change that can be read here."""
        ...

    @property
    def compacted_revision(self) -> int:
        """Return the smallest revision that `watch` can resume from."""
        ...

    async def get(self, kind: str, id: str) -> Record:
        """Return the record.

        Raises:
            NotFound: there is none here; another site may have it.
        """
        ...

    async def find(self, kind: str, id: str) -> Record | None:
        """Return the record, or None."""
        ...

    async def list(
        self,
        kind: str,
        *,
        iaas_id: str | None = None,
        name: str | None = None,
        where: Callable[[Record], bool] | None = None,
    ) -> tuple[Record, ...]:
        """Return the records of a kind, by id; `iaas_id` and `name` are looked up by index."""
        ...

    async def write(self, changes: Sequence[Change]) -> tuple[Record, ...]:
        """Make the changes durable as one atomic unit; return the records that were put.

        Raises:
            LostRace: an `expected` revision is not the stored one (`revision` says which is);
                read again and decide again. A `Conflict`, as `NameTaken` and `StaleEpoch` are.
            NotFound: a Delete without `expected` names nothing.
            InvalidRequest: the unit is too large, empty, or names an unknown kind.
            Unavailable: the disk is full or the store is closed; nothing was written.
            TimedOut: (etcd) no answer; whether it was written is unknown.
        """
        ...

    def watch(self, after_revision: int) -> AsyncIterator[Event]:
        """Yield each event after `after_revision`, in order, for ever.

        Raises:
            Compacted: events after it are not kept any more, also when the watcher itself
                was too slow.
        """
        ...

    async def changes_after(
        self, revision: int, *, limit: int = EVENTS_PER_READ_MAX
    ) -> tuple[Event, ...]:
        """Return up to `limit` events after `revision`; empty when there are none yet.

        Raises:
            Compacted: as `watch`.
        """
        ...

    async def wait_beyond(self, revision: int) -> int:
        """Wait until the catalogue's revision is above `revision`; return it."""
        ...

    def all_records(self) -> tuple[int, tuple[Record, ...]]:
        """Return the revision and every record at it: one consistent snapshot."""
        ...

    async def history(self, kind: str, id: str) -> tuple[Event, ...]:
        """Return the kept events of one object, oldest first."""
        ...

    async def compact(self, *, keep_count: int, keep_age_s: float) -> int:
        """Forget events beyond the last `keep_count` or older than `keep_age_s`.

        Records are never touched. Return the new `compacted_revision`.
        """
        ...

    async def close(self) -> None:
        """Finish what was accepted, then release everything."""
        ...
