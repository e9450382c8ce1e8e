"""Which generations of the federation's keys hold at this site now (`iaas.fabric_keys`).

The fabric's keys, those of LISP and the log-ins at disks are all made of them. Sites publish the
generations that they begin (`SiteTrust.key_generation`); the highest counts, as far as the secret
that it derives from is here. `on_roll` hears whenever others hold than before.
"""

from collections.abc import Callable

import structlog

from nuage.clock import Clock
from nuage.daemon.process import Tasks
from nuage.iaas.fabric_keys import FabricKeySet, KeyRoll, newest_generation
from nuage.iaas.index import FederationIndex

log = structlog.get_logger("keys")


class KeyDesk:
    """Learns generations, and looks again when one ends or begins to sign.

    `usable` says up to which generation keys can be made here (`daemon.secret_desk`).
    """

    def __init__(
        self,
        index: FederationIndex,
        roll: KeyRoll,
        tasks: Tasks,
        clock: Clock,
        *,
        usable: Callable[[int], int],
    ) -> None:
        self._index = index
        self._roll = roll
        self._tasks = tasks
        self._clock = clock
        self._usable = usable
        self._looks_at_s: float | None = None
        self._told: tuple[int, ...] = ()
        self.on_roll: Callable[[], None] = lambda: None

    @property
    def newest(self) -> int:
        """Return the highest generation learnt, -1: none yet."""
        return self._roll.newest

    def keys(self) -> FabricKeySet:
        """Return the fabric's keys of now."""
        if self._roll.newest < 0:
            self._learn()
        return self._roll.keys(self._clock.monotonic_s())

    def generations(self) -> tuple[int, ...]:
        """Return the generations that hold now, the one that signs first."""
        keys = self.keys()
        return keys.generation, *keys.accepted

    def look(self) -> None:
        """Learn what sites have published; call after each change of that, or of the secret."""
        self._learn()
        generations = self.generations()
        if generations != self._told:
            is_first, self._told = not self._told, generations
            if not is_first:
                log.info("keys roll", signs=generations[0], accepted=generations[1:])
            self.on_roll()

    def _learn(self) -> None:
        now_s = self._clock.monotonic_s()
        self._roll.learn(self._usable(newest_generation(self._index)), now_s)
        at_s = self._roll.next_s(now_s)
        if at_s is not None and at_s != self._looks_at_s:
            self._looks_at_s = at_s
            self._tasks.start("keys roll", self._look_later(at_s - now_s))

    async def _look_later(self, wait_s: float) -> None:
        await self._clock.sleep(wait_s)
        self._looks_at_s = None
        self.look()
