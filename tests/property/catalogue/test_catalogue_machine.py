"""Any sequence of writes, restarts, compactions and feeds, against a dict."""

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.contract.catalogue.catalogue_makers import MARNE, RENNES, HandClock, vm

from nuage.catalogue.codec import id_of
from nuage.catalogue.feed import FeedReader, FeedSender, Refused
from nuage.catalogue.memory import MemoryCatalogue
from nuage.catalogue.replica import MemoryReplicas
from nuage.catalogue.sqlite import SqliteCatalogue
from nuage.catalogue.store import Change, Compacted, Delete, Event, LostRace, NameTaken, Put
from nuage.errors import NotFound, StaleEpoch
from nuage.model.vm import Vm

T = TypeVar("T")
NUMBERS = st.integers(0, 5)
PUTS = st.builds(
    lambda number, name, iaas, epoch, expected, unique: Put(
        value=vm(number, name=name, iaas=iaas, epoch=epoch), expected=expected, unique_name=unique
    ),
    NUMBERS,
    st.sampled_from(["db", "web", "mail"]),
    st.sampled_from(["iaas-1", "iaas-2"]),
    st.integers(0, 2),
    st.none() | st.integers(0, 12),
    st.booleans(),
)
DELETES = st.builds(
    lambda number, expected: Delete(kind="vm", id=f"vm-{number}", expected=expected),
    NUMBERS,
    st.none() | st.integers(0, 12),
)
UNITS = st.lists(PUTS | DELETES, min_size=1, max_size=4)


class Oracle:
    """The obvious catalogue: a dict that is copied for each unit."""

    def __init__(self) -> None:
        self.stored: dict[str, tuple[int, Vm]] = {}
        self.log: list[tuple[int, str, Vm | None]] = []
        self.revision = 0

    def write(self, unit: list[Change]) -> type[Exception] | None:
        """Apply a unit, or return the class of the error it deserves."""
        stored, log, revision = dict(self.stored), list(self.log), self.revision
        for change in unit:
            id = change.id if isinstance(change, Delete) else id_of(change.value)
            at, before = stored.get(id, (0, None))
            if isinstance(change, Delete) and before is None and change.expected in (None, 0):
                return NotFound
            if change.expected is not None and change.expected != at:
                return LostRace
            revision += 1
            if isinstance(change, Delete):
                del stored[id]
                log.append((revision, id, None))
                continue
            assert isinstance(change.value, Vm)
            value = change.value
            if before is not None and value.epoch < before.epoch:
                return StaleEpoch
            same = [
                other
                for other, (_, held) in stored.items()
                if other != id and (held.name, held.iaas_id) == (value.name, value.iaas_id)
            ]
            if change.unique_name and same:
                return NameTaken
            stored[id] = (revision, value)
            log.append((revision, id, value))
        self.stored, self.log, self.revision = stored, log, revision
        return None


class CatalogueMachine(RuleBasedStateMachine):
    """Both embedded drivers do what the oracle does; a fed replica ends up equal."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="catalogue-"))
        self.runner = asyncio.Runner()
        self.oracle = Oracle()
        self.memory = MemoryCatalogue(MARNE, clock=HandClock())
        self.sqlite = self.run(self.open())
        self.replicas = MemoryReplicas()
        self.reader = FeedReader(MARNE, reader=RENNES, cursor=self.replicas.cursor(MARNE))
        self.compacted = 0

    def run(self, act: Coroutine[object, object, T]) -> T:
        return self.runner.run(act)

    async def open(self) -> SqliteCatalogue:
        return await SqliteCatalogue.open(
            self.folder / "c.db", site=MARNE, clock=HandClock(), tail_events_max=3
        )

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.run(self.sqlite.close())
            self.runner.close()
            shutil.rmtree(self.folder)

    @rule(units=st.lists(UNITS, min_size=1, max_size=4))
    def write_together(self, units: list[list[Change]]) -> None:
        expected = [self.oracle.write(unit) for unit in units]

        async def act(catalogue: MemoryCatalogue | SqliteCatalogue) -> list[object]:
            return list(
                await asyncio.gather(
                    *(catalogue.write(unit) for unit in units), return_exceptions=True
                )
            )

        for catalogue in (self.memory, self.sqlite):
            for want, got in zip(expected, self.run(act(catalogue)), strict=True):
                assert type(got) is (tuple if want is None else want), (want, got)

    @rule()
    def restart(self) -> None:
        self.run(self.sqlite.close())
        self.sqlite = self.run(self.open())

    @rule(keep_count=st.integers(0, 6))
    def compact(self, keep_count: int) -> None:
        self.compacted = max(self.compacted, self.oracle.revision - keep_count)
        for catalogue in (self.memory, self.sqlite):
            found = self.run(catalogue.compact(keep_count=keep_count, keep_age_s=1e12))
            assert found == self.compacted

    @rule()
    def feed(self) -> None:
        """One subscription of the replica: resumed, or a snapshot."""
        self.reader.restart(self.replicas.cursor(MARNE))
        request = self.reader.request()
        sender = FeedSender(MARNE, self.memory.incarnation)
        if sender.can_resume(
            request,
            head_revision=self.memory.revision,
            compacted_revision=self.memory.compacted_revision,
        ):
            events = self.run(self.memory.changes_after(request.after_revision))
            messages = list(sender.batches(events, head_revision=self.memory.revision, now_s=0.0))
        else:
            revision, records = self.memory.all_records()
            messages = list(sender.snapshot(revision, records, 0.0))
        for message in messages:
            for effect in self.reader.receive(message, now_s=0.0, monotonic_s=0.0):
                assert not isinstance(effect, Refused)
                self.replicas.show(effect)
        table = self.replicas.table(MARNE)
        fed = {} if table is None else {r.id: (r.revision, r.value) for r in table.all_records()}
        assert fed == self.oracle.stored

    @rule(after=st.integers(0, 30))
    def read_changes(self, after: int) -> None:
        for catalogue in (self.memory, self.sqlite):
            try:
                events: tuple[Event, ...] | None = self.run(catalogue.changes_after(after))
            except Compacted:
                events = None
            if not self.compacted <= after <= self.oracle.revision:
                assert events is None
                continue
            assert events is not None
            values = [(e.revision, e.id, e.record.value if e.record else None) for e in events]
            assert values == [entry for entry in self.oracle.log if entry[0] > after]

    @invariant()
    def stored_is_the_same(self) -> None:
        if not hasattr(self, "oracle"):
            return
        for catalogue in (self.memory, self.sqlite):
            revision, records = catalogue.all_records()
            assert revision == self.oracle.revision
            found = {record.id: (record.revision, record.value) for record in records}
            assert found == self.oracle.stored
            for name in ("db", "web", "mail"):
                named = self.run(catalogue.list("vm", name=name, iaas_id="iaas-1"))
                assert [record.id for record in named] == sorted(
                    id
                    for id, (_, value) in self.oracle.stored.items()
                    if (value.name, value.iaas_id) == (name, "iaas-1")
                )


TestCatalogueMachine = CatalogueMachine.TestCase
TestCatalogueMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
