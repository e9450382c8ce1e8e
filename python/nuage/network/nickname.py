"""Which nickname a RBridge holds (RFC 6325 §3.7 with erratum 3002).

A nickname configured by the federation's registry is used at once, with the top bit of its
priority set. Otherwise the one remembered from the last life is, and a random free one after
the database is synchronised. Of two holders the higher priority keeps it, then the higher
7-byte ID; the loser draws again. What is drawn is remembered, so a restart changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

from nuage.network.forwarding import NICKNAME_MAX, NICKNAME_UNKNOWN, Nickname
from nuage.network.isis_tlv import NicknameRecord, SystemId
from nuage.network.topology import NodeFacts

CONFIGURED_PRIORITY: Final = 0xC0
REMEMBERED_PRIORITY: Final = 0x50  # rather than a newcomer's draw
DRAWN_PRIORITY: Final = 0x40
SYNC_WAIT_S: Final = 2.0  # a RBridge that hears nobody chooses alone after this
ROOT_PRIORITY: Final = 0x8000


@dataclass(frozen=True, slots=True)
class NicknameWish:
    """What is configured, and what the last life used (0: nothing)."""

    configured: Nickname = NICKNAME_UNKNOWN
    remembered: Nickname = NICKNAME_UNKNOWN
    root_priority: int = ROOT_PRIORITY


def owner_key(record: NicknameRecord, system_id: SystemId) -> tuple[int, bytes]:
    """Return by what holders of one nickname are compared: the highest keeps it."""
    return (record.priority, system_id + b"\0")


def owners(nodes: Mapping[SystemId, NodeFacts]) -> dict[Nickname, tuple[NicknameRecord, SystemId]]:
    """Return who rightly holds each nickname."""
    held: dict[Nickname, tuple[NicknameRecord, SystemId]] = {}
    for system_id, facts in nodes.items():
        for record in facts.nicknames:
            other = held.get(record.nickname)
            if other is None or owner_key(record, system_id) > owner_key(*other):
                held[record.nickname] = (record, system_id)
    return held


class NicknameChooser:
    """Holds a nickname or strives for one."""

    def __init__(self, wish: NicknameWish, system_id: SystemId, prng: Random, now_s: float) -> None:
        self._system_id = system_id
        self._prng = prng
        self._root_priority = wish.root_priority
        self._started_s = now_s
        self.record: NicknameRecord | None = None
        if wish.configured:
            self.record = NicknameRecord(CONFIGURED_PRIORITY, wish.root_priority, wish.configured)
        elif wish.remembered:
            self.record = NicknameRecord(REMEMBERED_PRIORITY, wish.root_priority, wish.remembered)

    @property
    def nickname(self) -> Nickname:
        """Return the nickname held, 0 when none."""
        return self.record.nickname if self.record else NICKNAME_UNKNOWN

    def next_deadline_s(self) -> float:
        """Return when to look again without news."""
        return self._started_s + SYNC_WAIT_S if self.record is None else float("inf")

    def review(
        self, others: Mapping[SystemId, NodeFacts], *, synchronised: bool, now_s: float
    ) -> str:
        """Look at what others hold; return why the nickname changed, or "" when it did not."""
        if self.record is None:
            if not synchronised and now_s < self._started_s + SYNC_WAIT_S:
                return ""
            self._draw(others)
            return "chosen"
        rival = owners(others).get(self.record.nickname)
        if rival is None or owner_key(*rival) < owner_key(self.record, self._system_id):
            return ""
        self._draw(others)
        return f"conflict with {rival[1].hex()}"

    def _draw(self, others: Mapping[SystemId, NodeFacts]) -> None:
        taken = owners(others)
        while True:  # 65,471 nicknames and at most a few thousand taken: ends soon
            nickname = Nickname(self._prng.randrange(1, NICKNAME_MAX + 1))
            if nickname not in taken:
                break
        self.record = NicknameRecord(DRAWN_PRIORITY, self._root_priority, nickname)
