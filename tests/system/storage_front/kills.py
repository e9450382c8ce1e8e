"""Three real daemons with one volume, clients that keep a history, and somebody who kills.

Acts come from a seed, what they meet is up to the machine. With `ack` durable every answered write
must survive every kill; with `memory` (what VMs get) the loss of one copy at a time takes nothing,
and the loss of several at once nothing that was flushed.
"""

import itertools
import math
import shutil
import signal
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

from tests.system.storage_front.block_history import BlockHistories
from tests.system.storage_front.nbd_client import NbdClient, NotServed
from tests.system.storage_front.storage_front_daemon import MIB, Daemon, Refused

BLOCK_BYTES = 4096
SIZE_BYTES = 16 * MIB
BLOCKS = 512  # few, so that acts meet each other
CLIENTS = 6
ANSWER_TIMEOUT_S = 4.0  # a head that stands still never answers
PATIENCE_S = 90.0  # until all is well again, on a loaded machine
RETENTION = {"seconds": 3, "bytes": 64 * MIB}  # so that what compaction does is met, too
ERA_KILLS = 10  # between two looks at all that is there


def filled(value: int, count: int) -> bytes:
    """Return blocks that hold a value; it is found again in each of their words."""
    return struct.pack("<Q", value) * (count * BLOCK_BYTES // 8)


class Clients:
    """Threads that write, read and flush through the head, and note what they were told."""

    def __init__(self, sites: list[Daemon], seed: int) -> None:
        self.history = BlockHistories()
        self.flushed_s = -math.inf
        self.torn: list[str] = []
        self.head: Daemon | None = None
        self.answered = 0
        self._sites = sites
        self._lock = threading.Lock()
        self._values = itertools.count(1)
        self._may_run = threading.Event()
        self._ended = threading.Event()
        self._turns = [threading.Lock() for _ in range(CLIENTS)]
        self._threads = [
            threading.Thread(target=self._run, args=(turn, Random(f"{seed}/{number}")))
            for number, turn in enumerate(self._turns)
        ]
        for block in range(BLOCKS):
            self.history.known(block, 0)
        for thread in self._threads:
            thread.start()

    def go(self) -> None:
        """Let all of them run."""
        self._may_run.set()

    def begin_nothing(self) -> None:
        """Let what is on its way be the last."""
        self._may_run.clear()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Hold all of them while nothing is on its way."""
        self.begin_nothing()
        for turn in self._turns:
            turn.acquire()
        try:
            yield
        finally:
            for turn in self._turns:
                turn.release()

    def end(self) -> None:
        """End all threads."""
        self._ended.set()
        self._may_run.set()
        for thread in self._threads:
            thread.join()

    def _run(self, turn: threading.Lock, prng: Random) -> None:
        client: NbdClient | None = None
        while not self._ended.is_set():
            self._may_run.wait()
            with turn:
                try:
                    client = client or self._enter(prng)
                    self._act(client, prng)
                    self.answered += 1
                except (OSError, NotServed):
                    if client is not None:
                        client.close()
                    client = None
            if client is None:
                self._ended.wait(0.02)
        if client is not None:
            client.close()

    def _enter(self, prng: Random) -> NbdClient:
        """Come in at the head, or now and then where one was or will be."""
        site = self.head
        if site is None or prng.random() < 0.1:
            site = prng.choice(self._sites)
        return NbdClient(site.folder / "nbd", "v", ANSWER_TIMEOUT_S)

    def _act(self, client: NbdClient, prng: Random) -> None:
        count = prng.choice([1, 1, 1, 1, 1, 1, 2, 2, 8, 16, 64, 256])
        first = prng.randrange(BLOCKS - count + 1)
        kind, begin_s = prng.random(), time.monotonic()
        if kind < 0.05:
            client.flush()
            self.flushed_s = max(self.flushed_s, begin_s)
        elif kind < 0.4:
            self.look(client, first, count)
        else:
            self._write(client, first, count)

    def _write(self, client: NbdClient, first: int, count: int) -> None:
        value, begin_s, end_s = next(self._values), time.monotonic(), math.inf
        try:
            client.write(first * BLOCK_BYTES, filled(value, count))
            end_s = time.monotonic()
        finally:
            with self._lock:
                for block in range(first, first + count):
                    self.history.wrote(block, value, begin_s, end_s)

    def look(self, client: NbdClient, first: int, count: int, *, noted: bool = True) -> list[int]:
        """Read blocks; return their values. A block of two values is torn, or rotten."""
        begin_s = time.monotonic()
        data = client.read(first * BLOCK_BYTES, count * BLOCK_BYTES)
        end_s, values = time.monotonic(), []
        for index in range(count):
            block = data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
            value: int = struct.unpack_from("<Q", block)[0]
            if block != filled(value, 1):
                self.torn.append(f"block {first + index} is torn")
            values.append(value)
        if noted:
            with self._lock:
                for block_number, value in enumerate(values, first):
                    self.history.read(block_number, value, begin_s, end_s)
        return values


class Kills:
    """Whoever kills, brings back and lets another lead; `kills` counts."""

    def __init__(
        self, sites: list[Daemon], seed: int, ack: str, more: tuple[str, ...] = ()
    ) -> None:
        self.sites = sites
        self.prng = Random(seed)
        self.volumes = ("v", *more)
        self.kills = 0
        self.done: list[str] = []  # what was done, for whoever has to understand a fault
        self.on_lead: list[Path] = []  # links to the head's NBD door
        self.stands_still = True  # a former head tells whoever is still there that it is none
        self._ack = ack
        self._epoch = 0
        self._dead: list[Daemon] = []
        self._still: list[Daemon] = []
        self._filling: list[Daemon] = []
        for site in sites:
            self._create(site)
        self.clients = Clients(sites, seed)
        self.lead()
        self.until_well()

    def _create(self, site: Daemon, *, joins: bool = False) -> None:
        for number, volume in enumerate(self.volumes, 1):
            site.ask(
                "create_replica", volume=volume, size_bytes=SIZE_BYTES, logical_block_bytes=512,
                uuid=f"{number:02}" * 16, retention=RETENTION, joins=joins, epoch=self._epoch,
            )  # fmt: skip

    # Acts -----------------------------------------------------------------------------------------

    def _note(self, *words: object) -> None:
        self.done.append(f"{time.monotonic():.3f} " + " ".join(str(word) for word in words))

    def pause(self, up_to_s: float) -> None:
        """Let the world go on for a moment."""
        time.sleep(self.prng.random() * up_to_s)  # noqa: TID251 - real processes

    def able(self) -> list[Daemon]:
        """Return the sites that run and may lead."""
        away = self._dead + self._still + self._filling
        return [site for site in self.sites if site not in away]

    def kill(self, *victims: Daemon) -> None:
        """Kill daemons in one moment."""
        self._note("kill", *(victim.folder.name for victim in victims))
        for victim in victims:
            assert victim.process is not None
            victim.process.kill()
        for victim in victims:
            victim.kill()
            self._dead.append(victim)
            if victim is self.clients.head:
                self.clients.head = None
        self.kills += len(victims)

    def bring_back(self) -> None:
        """Start the dead again, let those go on that stand still."""
        for site in self._still:
            assert site.process is not None
            site.process.send_signal(signal.SIGCONT)
        self._still.clear()
        self.prng.shuffle(self._dead)
        for site in self._dead:
            self._note("start", site.folder.name)
            site.start()
        self._dead.clear()

    def lead(self) -> None:
        """Open the head somewhere, under the next epoch; does not wait for it."""
        if not self.able():
            return
        site = self.prng.choice(self.able())
        self._epoch += 1
        self._note("lead", site.folder.name, self._epoch)
        self._close(site)
        for volume in self.volumes:
            replicas = [
                {
                    "name": f"{other.folder.name}-io1",
                    "site": other.folder.name,
                    "address": f"127.0.0.1:{other.replica}",
                }
                for other in self.sites
                if other is not site
            ]
            site.ask(
                "open_head", volume=volume, epoch=self._epoch, policy="any-2-of-3",
                replicas=replicas, position=self.sites.index(site), nbd=volume,
                ack=self._ack if volume == "v" else "durable",
            )  # fmt: skip
        self.clients.head = site
        for link in self.on_lead:
            link.with_suffix(".new").symlink_to(site.folder / "nbd")
            link.with_suffix(".new").replace(link)

    def _close(self, site: Daemon) -> None:
        """Make a copy of a former head, as its agent does; it may learn now that it is one."""
        for volume in self.volumes:
            try:
                site.ask("close_head", volume=volume)
            except Refused as refused:
                if refused.code != "stale_epoch":
                    raise
                site.ask("close_head", volume=volume)

    def until_well(self) -> None:
        """Bring all back and wait until the head serves and every copy gets each write."""
        self.bring_back()
        if self.clients.head is None:
            self.lead()
        for site in self.sites:
            if site is not self.clients.head:
                self._close(site)
        deadline_s = time.monotonic() + PATIENCE_S
        while not self._is_well():
            assert time.monotonic() < deadline_s, self.told()
            time.sleep(0.05)  # noqa: TID251 - real processes
        self._filling.clear()
        self._note("well")

    def _is_well(self) -> bool:
        site = self.clients.head
        assert site is not None
        for volume in self.volumes:
            match site.ask("status", volume=volume)["head"]:
                case {"state": "open", "copies": list(copies)}:
                    if any(copy["state"] != "live" for copy in copies):
                        return False
                case {"state": "fenced"}:
                    raise AssertionError(f"the last head is fenced\n{self.told()}")
                case None:  # what it lacks has left the others' history: another has it
                    self._note("gave up", site.folder.name)
                    self.lead()
                    return False
                case _:
                    return False
        return True

    def lose_disk(self) -> None:
        """Kill a copy that does not lead and take its disk away; all others are well."""
        victim = self.prng.choice([s for s in self.able() if s is not self.clients.head])
        self.kill(victim)
        self._note("loses its disk", victim.folder.name)
        shutil.rmtree(victim.folder / "data")
        self._filling.append(victim)
        self.pause(0.5)
        self.bring_back()
        self._create(victim, joins=True)

    def stand_still(self) -> None:
        """Stop the head, let another lead; it wakes and knows nothing."""
        site = self.clients.head
        if site is None or len(self.able()) < 2 or self._dead:
            return
        assert site.process is not None
        self._note("stand still", site.folder.name)
        site.process.send_signal(signal.SIGSTOP)
        self._still.append(site)
        self.pause(0.5)
        self.lead()
        self.pause(2.0)
        self.bring_back()

    # Looks ----------------------------------------------------------------------------------------

    def told(self) -> str:
        """Return what was done and what the daemons say."""
        logs = [f"-- {site.folder.name}\n{site.log[-3000:]}" for site in self.sites]
        heads = []
        if self.clients.head is not None:
            heads = [str(self.clients.head.ask("status", volume=v)) for v in self.volumes]
        return "\n".join([*self.done[-40:], *heads, *logs])

    def look(self, *, is_lossy: bool = False) -> None:
        """Once all is well: read everything, judge the history, begin another.

        The head is killed before: what of the past had no answer is decided by the next.
        """
        with self.clients.at_rest():
            self.until_well()
            assert self.clients.head is not None
            self.kill(self.clients.head)
            self.lead()
            self.until_well()
            client = NbdClient(self.clients.head.folder / "nbd", "v", PATIENCE_S)
            history, faults = self.clients.history, []
            values = self.clients.look(client, 0, BLOCKS, noted=not is_lossy)
            faults += history.faults() + self.clients.torn
            if is_lossy:
                for block, value in enumerate(values):
                    faults += history.faults_after_loss(block, value, self.clients.flushed_s)
            assert not faults, "\n".join([*faults[:20], self.told()])
            client.flush()
            client.close()
            for block, value in enumerate(values):
                history.known(block, value)
        self._note("looked", self.clients.answered)

    def require_one_chain(self) -> None:
        """All copies have one history, and every record of it holds."""
        with self.clients.at_rest():
            self.until_well()
            deadline_s = time.monotonic() + PATIENCE_S
            while len(found := {self._chain(site) for site in self.sites}) > 1:
                assert time.monotonic() < deadline_s, (found, self.told())
                time.sleep(0.1)  # noqa: TID251 - real processes

    def _chain(self, site: Daemon) -> tuple[object, object]:
        after = 0
        while True:
            part = site.ask("verify_chain", volume="v", after=after)
            if part["complete"]:
                return part["last_sequence"], part["chain"]
            after = int(str(part["last_sequence"]))

    # Stories --------------------------------------------------------------------------------------

    def durable_round(self) -> None:
        """Kill whom it may be whenever it may be, clients running; then look at everything."""
        self.clients.go()
        until = self.kills + ERA_KILLS
        while self.kills < until:
            self.pause(0.4)
            self._one_blow()
            self.pause(0.3)
            if self.clients.head is None and self.prng.random() < 0.6:
                self.lead()  # before the dead are back, or with nobody to follow
                self.pause(1.5)
            self.bring_back()
            if self.clients.head is None:
                self.lead()
            if self.prng.random() < 0.5:
                self.until_well()  # else the next blow falls in mid-recovery
        self.look()

    def _one_blow(self) -> None:
        running = [site for site in self.sites if site not in self._dead]
        followers = [site for site in running if site is not self.clients.head]
        kind = self.prng.random()
        if kind < 0.35 and self.clients.head in running:
            self.kill(self.clients.head)
        elif kind < 0.6 and followers:
            self.kill(self.prng.choice(followers))
        elif kind < 0.75:
            self.kill(*self.prng.sample(running, min(2, len(running))))
        elif kind < 0.85:
            self.kill(*running)
        elif kind < 0.93 and self.stands_still:
            self.stand_still()
        elif not self._filling:
            self.until_well()
            self.lose_disk()

    def memory_round(self) -> None:
        """Kill one after the other, each once all is well; then several at once, and look."""
        self.clients.go()
        for _ in range(ERA_KILLS // 2):
            self.pause(0.4)
            self.kill(self.prng.choice(self.sites))
            self.pause(0.3)
            if self.clients.head is None:
                self.lead()
                self.pause(1.5)
            self.until_well()
        self.look()
        self.clients.go()
        self.pause(0.6)
        self.clients.begin_nothing()
        self.kill(*self.prng.sample(self.sites, self.prng.choice([2, 3])))
        self.bring_back()
        for _ in range(self.prng.randrange(3)):
            self.lead()
            self.pause(0.5)
            self.kill(self.prng.choice(self.sites))
            self.bring_back()
        self.look(is_lossy=True)

    def end(self) -> None:
        """Leave no thread and nobody standing still."""
        self.clients.end()
        for site in self._still:
            with suppress(ProcessLookupError):
                assert site.process is not None
                site.process.send_signal(signal.SIGCONT)
