"""Feeds, leases and takeover in one process, under a virtual clock, from one seed.

What is real: `Table`, `FeedSender`, `FeedReader`, `MemoryReplicas`, `QuorumState`,
`LeaseView`. What is played: the network (partitions, delay, loss of connections), crashes of
controllers, clocks that drift, and Raft as far as leases can see it: a majority is needed,
an election takes time and gives every lease its full time anew, and an old leader answers
keep-alives for a while after it was replaced.

Fault model of the agents: they outlive their controller and stop a VM by their own clock.
"""

import heapq
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from random import Random  # one generator from one seed

from msgspec.structs import replace
from tests.contract.catalogue.catalogue_makers import user, vm
from tests.simulation.catalogue.holdings import Holdings

from nuage.catalogue.codec import encode_value
from nuage.catalogue.feed import (
    ApplyBatch,
    Batch,
    FeedMessage,
    FeedReader,
    FeedRequest,
    FeedSender,
    Refused,
    ReplaceReplica,
)
from nuage.catalogue.replica import MemoryReplicas
from nuage.catalogue.store import Delete, Event, Put
from nuage.catalogue.table import Table, prepare
from nuage.errors import Conflict, RemoteProtocolError
from nuage.ids import SiteId
from nuage.model.infrastructure import Datacenter, Operator
from nuage.model.record import Record
from nuage.quorum.lease import LeaseView
from nuage.quorum.model import LeaseTiming, Ownership
from nuage.quorum.state import QuorumState

TIMING = LeaseTiming()
CHAOS_S = 60.0  # long enough for a lease to expire, a takeover and a return
HEAL_S = 30.0  # a lease (15 s), an election, a few retries
HEARTBEAT_S = 1.0
SILENCE_S = 5.0
POLL_S = 0.9
VM_COUNT = 4
FOREIGN_DATACENTER = encode_value(
    Datacenter(
        site_id=SiteId("a"),
        place="A",
        country="FR",
        operator=Operator("A", "FR"),
        tier=1,
        power_capacity_watts=1.0,
    )
)


@dataclass
class Connection:
    """One subscription: the sender's position, and what is on its way."""

    sender: SiteId
    reader: SiteId
    feed: FeedReader
    position: int | None = None  # None until the request has arrived
    arrives_s: float = 0.0  # of the last message: a stream keeps its order
    heard_s: float = 0.0
    is_open: bool = True


@dataclass
class Site:
    """A controller with its disk, and one agent with a clock of its own."""

    name: SiteId
    rate: float
    agent_rate: float
    offset_s: float
    table: Table
    holdings: Holdings
    incarnation: str = "1"
    is_up: bool = True
    boots: int = 0
    events: list[Event] = field(default_factory=list)
    compacted: int = 0
    written: dict[int, Record] = field(default_factory=dict)
    oracle: dict[tuple[str, str], object] = field(default_factory=dict)
    replicas: MemoryReplicas = field(default_factory=MemoryReplicas)
    connections: dict[SiteId, Connection] = field(default_factory=dict)
    leaving: dict[str, tuple[SiteId, int]] = field(default_factory=dict)  # on disk
    running: dict[str, float] = field(default_factory=dict)  # VM to the agent's last moment
    wrong_items: bool = False

    @property
    def view(self) -> LeaseView:
        return self.holdings.view

    def monotonic_s(self, true_s: float) -> float:
        return true_s * self.rate

    def agent_s(self, true_s: float) -> float:
        return true_s * self.agent_rate

    def now_s(self, true_s: float) -> float:
        return 1e9 + self.offset_s + true_s * self.rate


class World:
    """The simulation of one seed; `run` ends with the checks."""

    def __init__(self, seed: int, *, timing: LeaseTiming = TIMING) -> None:
        self.prng = Random(seed)
        self.time_s = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        drift = TIMING.drift_max
        names = [SiteId(name) for name in "abcde"[: self.prng.choice((3, 3, 3, 4, 5))]]
        self.sites = {
            name: Site(
                name=name,
                rate=1.0 + self.prng.uniform(-drift, drift),
                agent_rate=1.0 + self.prng.uniform(-drift, drift),
                offset_s=self.prng.uniform(-300.0, 300.0),
                table=Table(name),
                holdings=Holdings(LeaseView(timing)),
            )
            for name in names
        }
        self.down_links: set[frozenset[SiteId]] = set()
        self.timing = timing
        self.slow = self.prng.random() < 0.3
        self.quorum = QuorumState(TIMING.ttl_s)
        self.leader: SiteId | None = names[0]
        self.stale: tuple[SiteId, float] | None = None
        self.takeover_count = 0
        self.watch_s = self.prng.choice((0.3, 1.0, 2.0))  # how soon a takeover is tried
        self.is_healing = False

    # ---- time ----

    def later(self, delay_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.time_s + delay_s, next(self._order), act))

    def every(self, period_s: float, act: Callable[[], None]) -> None:
        def again() -> None:
            act()
            self.later(period_s * (0.8 + 0.4 * draw()), again)

        draw = self.prng.random  # a run asks some thirty thousand times

        self.later(self.prng.uniform(0.0, period_s), again)

    def run_until(self, end_s: float) -> None:
        while self._queue and self._queue[0][0] <= end_s:
            self.time_s, _, act = heapq.heappop(self._queue)
            act()
        self.time_s = end_s

    # ---- network ----

    def is_linked(self, a: SiteId, b: SiteId) -> bool:
        return not self.down_links or a == b or frozenset((a, b)) not in self.down_links

    def delay_s(self) -> float:
        if self.slow and self.prng.random() < 0.05:
            return self.prng.uniform(0.5, 3.0)
        return self.prng.uniform(0.002, 0.06)

    # ---- feeds ----

    def subscribe(self, reader: Site, sender: SiteId) -> None:
        if not reader.is_up:
            return
        old = reader.connections.get(sender)
        if old is not None and old.is_open:
            return
        cursor = reader.replicas.cursor(sender)
        if old is None:
            feed = FeedReader(sender, reader=reader.name, cursor=cursor)
        else:
            feed = old.feed
            feed.restart(cursor)
        connection = Connection(sender, reader.name, feed, heard_s=self.time_s)
        reader.connections[sender] = connection
        request = feed.request()
        self.later(self.delay_s(), lambda: self.accept(connection, request))

    def accept(self, connection: Connection, request: FeedRequest) -> None:
        sender = self.sites[connection.sender]
        if not sender.is_up or not self.is_linked(connection.sender, connection.reader):
            return
        machine = FeedSender(sender.name, sender.incarnation)
        if machine.can_resume(
            request, head_revision=sender.table.revision, compacted_revision=sender.compacted
        ):
            connection.position = request.after_revision
        else:
            self.send_snapshot(sender, connection)
        self.pump(connection)

    def send_snapshot(self, sender: Site, connection: Connection) -> None:
        machine = FeedSender(sender.name, sender.incarnation)
        records = sender.table.all_records()
        connection.position = sender.table.revision
        for message in machine.snapshot(sender.table.revision, records, sender.now_s(self.time_s)):
            self.send(connection, message)

    def pump(self, connection: Connection) -> None:
        """Send what is due; an idle feed says so."""
        sender = self.sites[connection.sender]
        if not connection.is_open or not sender.is_up or connection.position is None:
            return
        machine, now_s = FeedSender(sender.name, sender.incarnation), sender.now_s(self.time_s)
        if connection.position < sender.compacted:
            self.send_snapshot(sender, connection)
            return
        events = [event for event in sender.events if event.revision > connection.position]
        if not events:
            self.send(
                connection, machine.heartbeat(head_revision=sender.table.revision, now_s=now_s)
            )
            return
        for message in machine.batches(events, head_revision=sender.table.revision, now_s=now_s):
            self.send(connection, self.spoil(sender, message))
        connection.position = events[-1].revision

    def spoil(self, sender: Site, message: FeedMessage) -> FeedMessage:
        """Now and then put words into the message that its sender may not say."""
        if not sender.wrong_items or not isinstance(message.body, Batch):
            return message
        items = list(message.body.items)
        index = self.prng.randrange(len(items))
        victim = self.prng.choice([name for name in self.sites if name != sender.name])
        true = items[index]
        items[index] = self.prng.choice(
            (
                replace(true, home=victim),
                replace(true, kind="planet"),
                replace(true, id="other", body=true.body or b"null"),
                replace(true, body=b'{"name":"forged"}'),
                replace(true, kind="datacenter", id=victim, body=FOREIGN_DATACENTER),
            )
        )
        return FeedMessage(
            sender=message.sender, incarnation=message.incarnation, sent_s=message.sent_s,
            head_revision=message.head_revision,
            body=Batch(after_revision=message.body.after_revision, items=tuple(items)),
        )  # fmt: skip

    def send(self, connection: Connection, message: FeedMessage) -> None:
        if not self.is_linked(connection.sender, connection.reader):
            return  # lost with the connection; the reader notices by silence
        connection.arrives_s = max(connection.arrives_s, self.time_s + self.delay_s())
        self.later(connection.arrives_s - self.time_s, lambda: self.deliver(connection, message))

    def deliver(self, connection: Connection, message: FeedMessage) -> None:
        reader = self.sites[connection.reader]
        if not connection.is_open or reader.connections.get(connection.sender) is not connection:
            return
        if not self.is_linked(connection.sender, connection.reader):
            connection.is_open = False
            return
        connection.heard_s = self.time_s
        try:
            effects = connection.feed.receive(
                message,
                now_s=reader.now_s(self.time_s),
                monotonic_s=reader.monotonic_s(self.time_s),
            )
        except RemoteProtocolError:
            connection.is_open = False
            return
        boots = reader.boots
        for effect in effects:
            if not isinstance(effect, Refused):
                self.store(reader, boots, effect)

    def store(self, reader: Site, boots: int, effect: ApplyBatch | ReplaceReplica) -> None:
        """The disk takes a moment; a crash before that loses the effect and its cursor."""

        def act() -> None:
            if reader.boots == boots:
                sender = self.sites[effect.site]
                for record in effect.records:
                    assert sender.written[record.revision] == record, "a forged record came in"
                reader.replicas.show(effect)

        self.later(0.0005, act)

    def watch_silence(self) -> None:
        for reader in self.sites.values():
            for sender in self.sites:
                if sender == reader.name:
                    continue
                connection = reader.connections.get(sender)
                if connection is not None and self.time_s - connection.heard_s > SILENCE_S:
                    connection.is_open = False
                self.subscribe(reader, sender)

    def pump_all(self) -> None:
        for reader in self.sites.values():
            for connection in reader.connections.values():
                self.pump(connection)

    # ---- writes at home ----

    def write(self, site: Site, *changes: Put | Delete) -> None:
        unit = prepare(changes)
        staged = site.table.stage(unit, site.now_s(self.time_s))
        site.events.extend(staged.events)
        for event in staged.events:
            if event.record is not None:
                site.written[event.revision] = event.record
            key = (event.kind, event.id)
            if event.record is None:
                del site.oracle[key]
            else:
                site.oracle[key] = event.record.value
        for reader in self.sites.values():
            connection = reader.connections.get(site.name)
            if connection is not None:
                self.later(0.005, lambda connection=connection: self.pump(connection))  # type: ignore[misc]

    def work(self) -> None:
        """One write of a tenant or operator somewhere."""
        site = self.prng.choice(list(self.sites.values()))
        if not site.is_up:
            return
        number = self.prng.randrange(12)
        if ("user", f"user-{number}") in site.oracle and self.prng.random() < 0.3:
            self.write(site, Delete(kind="user", id=f"user-{number}"))
        else:
            self.write(site, Put(value=user(number, name=f"u{self.prng.randrange(10**6)}")))
        if self.prng.random() < 0.05:
            site.compacted = site.table.revision - min(3, site.table.revision)
            site.events = [e for e in site.events if e.revision > site.compacted]

    # ---- the majority ----

    def reachable(self, leader: SiteId) -> bool:
        """Tell whether a leader's member reaches a majority; members outlive controllers."""
        if not self.down_links:
            return True
        linked = sum(self.is_linked(leader, other) for other in self.sites)
        return 2 * linked > len(self.sites)

    def true_leader(self) -> SiteId | None:
        return self.leader if self.leader is not None and self.reachable(self.leader) else None

    def leader_s(self) -> float:
        assert self.leader is not None
        return self.sites[self.leader].monotonic_s(self.time_s)

    def elect(self) -> None:
        """A leader without a majority is replaced; it may not notice at once."""
        if self.leader is not None and self.reachable(self.leader):
            return
        old, self.leader = self.leader, None
        started_s = self.time_s

        def finish() -> None:
            able = [name for name in self.sites if self.reachable(name)]
            if self.leader is not None:
                return
            if not able:
                self.later(TIMING.election_s, finish)
                return
            self.leader = self.prng.choice(able)
            self.quorum.extend_all(self.leader_s())
            if old is not None and old != self.leader:
                self.stale = (old, min(started_s + 2 * TIMING.election_s,
                                       self.time_s + TIMING.election_s))  # fmt: skip

        self.later(self.prng.uniform(1.0, 2.0) * TIMING.election_s, finish)

    def ask(
        self,
        site: Site,
        question: Callable[[], Callable[[], None]],
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        """Carry a question to the leader and its answer back; each may be lost."""
        boots = site.boots

        def arrive() -> None:
            leader = self.true_leader()
            if leader is None or not self.is_linked(site.name, leader):
                self.later(0.1, failed)
                return
            answer = question()

            def back() -> None:
                current = self.true_leader() or leader
                if site.is_up and site.boots == boots and self.is_linked(site.name, current):
                    answer()
                else:
                    failed()

            self.later(self.delay_s(), back)

        self.later(self.delay_s(), arrive)

    # ---- leases ----

    def renew(self, site: Site) -> None:
        if not site.is_up:
            return
        sent_s = site.monotonic_s(self.time_s)
        self.later(self.delay_s(), lambda: self.keep_alive(site, site.boots, sent_s))

    def keep_alive(self, site: Site, boots: int, sent_s: float) -> None:
        """First half: whoever takes itself for the leader renews; then the majority confirms."""
        leader = self.true_leader()
        if leader is not None and self.is_linked(site.name, leader):
            if any(lease.site == site.name for lease in self.quorum.leases(self.leader_s())):
                self.quorum.renew(site.name, site.name, self.leader_s())
        elif not (
            self.stale is not None
            and self.time_s < self.stale[1]
            and self.is_linked(site.name, self.stale[0])
        ):
            return
        if site.boots != boots:
            return

        def confirm() -> Callable[[], None]:
            held = any(lease.site == site.name for lease in self.quorum.leases(self.leader_s()))
            had_gap = not site.view.is_held(sent_s)
            if not held:
                if not had_gap:
                    return lambda: None  # lost it: wait for the hold to end, then take it anew
                self.quorum.renew(site.name, site.name, self.leader_s())
            owned = self.quorum.owners_of(site.name)
            return lambda: self.renewed(site, sent_s, owned, had_gap=had_gap)

        self.ask(site, confirm)

    def renewed(
        self, site: Site, sent_s: float, owned: tuple[Ownership, ...], *, had_gap: bool
    ) -> None:
        held_now = site.view.is_held(site.monotonic_s(self.time_s))
        if had_gap == held_now:
            return  # it lapsed on the way, or another answer was quicker
        if had_gap:
            site.holdings.acquired(owned)
            self.adopt(site, owned)
        site.view.renewed(sent_monotonic_s=sent_s, ttl_s=TIMING.ttl_s)

    def adopt(self, site: Site, owned: tuple[Ownership, ...]) -> None:
        """Take over what the quorum says is ours."""
        epochs = {ownership.id: ownership.epoch for ownership in owned}
        for id, (_, epoch) in list(site.leaving.items()):
            if epochs.get(id) != epoch:
                del site.leaving[id]
        for ownership in owned:
            self.record(site, ownership)

    def record(self, site: Site, ownership: Ownership) -> None:
        """Write what we own under its epoch; what others own now is kept aside, not deleted."""
        record = site.table.find("vm", ownership.id)
        if record is None or record.epoch < ownership.epoch:
            number = int(ownership.id.removeprefix("vm-"))
            self.write(site, Put(value=vm(number, epoch=ownership.epoch)))

    def is_holding(self, site: Site) -> bool:
        return site.is_up and site.view.is_held(site.monotonic_s(self.time_s))

    def reconcile(self, site: Site) -> None:
        if not self.is_holding(site):
            return
        ticket = site.holdings.ticket()

        def look() -> Callable[[], None]:
            owned = self.quorum.owners_of(site.name)
            leases = {lease.site for lease in self.quorum.leases(self.leader_s())}
            gone = [o for o in self.quorum.all_owners() if o.owner and o.owner not in leases]

            def learn() -> None:
                if self.is_holding(site) and site.holdings.learned(ticket, owned):
                    self.adopt(site, owned)
                    for ownership in gone:
                        self.take_over(site, ownership)

            return learn

        self.ask(site, look)

    def take_over(self, site: Site, lost: Ownership) -> None:
        ticket = site.holdings.ticket()

        def act() -> Callable[[], None]:
            try:
                taken = self.quorum.move(
                    lost.kind, lost.id, from_site=lost.owner, to_site=site.name,
                    expected_epoch=lost.epoch, now_s=self.leader_s(), from_expired=True,
                )  # fmt: skip
            except Conflict:
                return lambda: None
            self.takeover_count += 1

            def start_at_once() -> None:
                if site.holdings.gained(ticket, taken):
                    self.record(site, taken)
                    self.poll(site)

            return start_at_once

        self.ask(site, act)

    def create_vm(self, number: int) -> None:
        site = self.prng.choice(list(self.sites.values()))
        if not self.is_holding(site):
            self.later(1.0, lambda: self.create_vm(number))
            return

        def act() -> Callable[[], None]:
            with suppress(Conflict):
                self.quorum.claim(
                    "vm", f"vm-{number}", site.name, expected_epoch=0, now_s=self.leader_s()
                )
            return lambda: None

        def check() -> None:
            if self.quorum.owner("vm", f"vm-{number}") is None:
                self.create_vm(number)

        self.ask(site, act)
        self.later(5.0, check)

    def move_vm(self) -> None:
        """Begin an orderly transfer; the agent stops the VM first."""
        site = self.prng.choice(list(self.sites.values()))
        target = self.prng.choice(list(self.sites))
        held = site.holdings.all(site.monotonic_s(self.time_s))
        if site.is_up and held and target != site.name:
            chosen = self.prng.choice(sorted(held, key=lambda ownership: ownership.id))
            site.leaving[chosen.id] = (target, chosen.epoch)
            site.holdings.begin_transfer("vm", chosen.id, chosen.epoch)

    def hand_over(self, site: Site) -> None:
        """Transfer what is stopped. Until the quorum has answered, it is nobody's to run."""
        for id, (target, epoch) in site.leaving.items():
            if id not in site.running and self.is_holding(site):
                self.ask(site, lambda id=id, target=target, epoch=epoch: (  # type: ignore[misc]
                    self.transfer(site, id, target, epoch)
                ))  # fmt: skip

    def transfer(self, site: Site, id: str, target: SiteId, epoch: int) -> Callable[[], None]:
        try:
            self.quorum.move(
                "vm", id, from_site=site.name, to_site=target, expected_epoch=epoch,
                now_s=self.leader_s(), from_expired=False,
            )  # fmt: skip
        except Conflict:
            return lambda: None  # the target has no lease now, or it is done: tried again

        def moved() -> None:
            if site.leaving.get(id) == (target, epoch):
                del site.leaving[id]
                site.holdings.concluded("vm", id, None)

        return moved

    # ---- agents ----

    def poll(self, site: Site) -> None:
        """The agent asks its controller; what it is told counts from when it asked."""
        asked_s = site.agent_s(self.time_s)

        def answer() -> None:
            if not site.is_up:
                return
            remaining_s = site.view.remaining_s(site.monotonic_s(self.time_s))
            held = site.holdings.all(site.monotonic_s(self.time_s))
            wanted = {ownership.id for ownership in held}
            self.later(0.001, lambda: self.obey(site, wanted, asked_s + remaining_s))

        self.later(self.prng.uniform(0.0005, 0.02), answer)

    def obey(self, site: Site, wanted: set[str], until_s: float) -> None:
        for id in [id for id in site.running if id not in wanted]:
            self.stop(site, id)
        for id in wanted:
            if until_s <= site.agent_s(self.time_s):
                continue
            if id not in site.running:
                for other in self.sites.values():
                    assert id not in other.running, (
                        f"{id} starts at {site.name} and runs at {other.name}"
                    )
            site.running[id] = max(until_s, site.running.get(id, 0.0))

    def stop(self, site: Site, id: str) -> None:
        """Stopping takes a moment, in which the VM still runs."""
        site.running.pop(id)

    def enforce(self) -> None:
        """Agents stop what their lease does not cover, at the latest `stop_s` after."""
        for site in self.sites.values():
            if not site.running:
                continue
            for id, until_s in list(site.running.items()):
                if site.agent_s(self.time_s) >= until_s + TIMING.stop_s * 0.9:
                    self.stop(site, id)

    # ---- trouble ----

    def trouble(self) -> None:
        names = list(self.sites)
        choice = self.prng.random()
        if choice < 0.35:
            cut = self.prng.choice(names)
            for other in names:
                if other != cut:
                    self.down_links.add(frozenset((cut, other)))
        elif choice < 0.5:
            a, b = self.prng.sample(names, 2)
            self.down_links.add(frozenset((a, b)))
        elif choice < 0.75:
            self.down_links.clear()
        elif choice < 0.9:
            self.crash(self.sites[self.prng.choice(names)])
        else:
            self.sites[self.prng.choice(names)].wrong_items ^= True

    def crash(self, site: Site) -> None:
        """`kill -9` of a controller: its memory is gone, its disk and its agent are not."""
        if not site.is_up:
            return
        site.is_up = False
        site.boots += 1
        site.holdings = Holdings(LeaseView(self.timing))
        for id, (_, epoch) in site.leaving.items():
            site.holdings.begin_transfer("vm", id, epoch)
        for connection in site.connections.values():
            connection.is_open = False
        site.connections = {}
        for other in self.sites.values():
            connection_to = other.connections.get(site.name)
            if connection_to is not None:
                connection_to.is_open = False

        def boot() -> None:
            site.is_up = True

        self.later(self.prng.uniform(0.5, 20.0), boot)

    # ---- the run ----

    def run(self) -> None:
        for site in self.sites.values():
            self.every(TIMING.renew_every_s, lambda site=site: self.renew(site))  # type: ignore[misc]
            self.every(self.watch_s, lambda site=site: self.reconcile(site))  # type: ignore[misc]
            self.every(0.5, lambda site=site: self.hand_over(site))  # type: ignore[misc]
            self.every(POLL_S, lambda site=site: self.poll(site))  # type: ignore[misc]
        self.every(HEARTBEAT_S, self.pump_all)
        self.every(1.0, self.watch_silence)
        self.every(0.3, self.elect)
        self.every(0.1, self.enforce)
        self.every(0.5, self.chaos(self.work))
        for number in range(VM_COUNT):
            self.later(self.prng.uniform(3.0, 15.0), lambda number=number: self.create_vm(number))  # type: ignore[misc]
        self.every(self.prng.uniform(3.0, 10.0), self.chaos(self.trouble))
        self.every(6.0, self.chaos(self.move_vm))
        self.run_until(CHAOS_S)
        self.heal()
        self.run_until(CHAOS_S + HEAL_S)
        self.check()

    def chaos(self, act: Callable[[], None]) -> Callable[[], None]:
        def unless_healing() -> None:
            if not self.is_healing:
                act()

        return unless_healing

    def heal(self) -> None:
        self.is_healing = True
        self.down_links.clear()
        self.slow = False
        for site in self.sites.values():
            site.wrong_items = False
            site.compacted = site.table.revision  # forged items are gone with a new snapshot
            site.events.clear()
            site.incarnation = "healed"
            for connection in site.connections.values():
                connection.is_open = False

    def check(self) -> None:
        """What must hold once all is well again."""
        for site in self.sites.values():
            stored = {(r.kind, r.id): r.value for r in site.table.all_records()}
            assert stored == site.oracle, f"{site.name} lost or gained what nobody wrote"
            for reader in self.others(site):
                replica = reader.replicas.table(site.name)
                assert replica is not None, f"{reader.name} knows nothing of {site.name}"
                assert all(record.home == site.name for record in replica.all_records())
                assert set(replica.all_records()) == set(site.table.all_records()), (
                    f"{reader.name}'s replica of {site.name} differs"
                )
        for ownership in self.quorum.all_owners():
            at = [site.name for site in self.sites.values() if ownership.id in site.running]
            assert at == [ownership.owner], f"{ownership} runs at {at}"
            record = self.sites[ownership.owner].table.find("vm", ownership.id)
            assert record is not None, f"{ownership} has no record"
            assert record.epoch == ownership.epoch
            for other in self.others(self.sites[ownership.owner]):
                shadow = other.table.find("vm", ownership.id)
                assert shadow is None or shadow.epoch < ownership.epoch

    def others(self, site: Site) -> Iterator[Site]:
        return (other for other in self.sites.values() if other is not site)
