"""What happens in a node's fabric, told to people: lines of `nuage fabric show --news`, and events.

The machines say a word for machines and a detail. Here it becomes a sentence that names the trunk
and who is at its other end. What asks for somebody's attention is an event of the federation
besides (`nuage events`); what belongs to every start and every move is not. What a stranger can
cause comes once in 30 s a trunk (`network.rate_limit.Hush`).
"""

import time
from collections import deque
from typing import Final

from nuage.network.fabric_event import FabricLog, FabricNews
from nuage.network.forwarding import PortNumber
from nuage.network.lisp_event import LispLog, LispNews

NEWS_KEPT: Final = 64
_FABRIC: Final = {
    FabricNews.ADJACENCY_UP: "is up",
    FabricNews.ADJACENCY_DOWN: "is down",
    FabricNews.AUTHENTICATION_FAILED: "brings control messages without the fabric's key: not read",
    FabricNews.MALFORMED: "brings control messages that are wrong: not read",
    FabricNews.NEIGHBOUR_FLOODING: "brings more control messages than are read",
    FabricNews.NICKNAME_CHANGED: "this node's nickname changed",
    FabricNews.MTU_TOO_SMALL: "does not carry frames as long as promised",
    FabricNews.MTU_ENOUGH: "carries frames as long as promised again",
    FabricNews.SECOND_NEIGHBOUR: "brings messages of a second RBridge, which is ignored",
    FabricNews.LSP_OVERFLOW: "this node has more to say than fits",
    FabricNews.NEIGHBOUR_RESTARTED: "its neighbour began anew",
    FabricNews.NAME_DISPUTED: "brings messages in this node's own name, again and again: "
    "answered five times a second",
}
_LISP: Final = {
    LispNews.AUTHENTICATION_FAILED: "sends public addresses' control messages with a wrong key: "
    "not read",
    LispNews.REPLAYED: "repeats a register that was heard before: not taken",
    LispNews.MALFORMED: "sends public addresses' control messages that are wrong: not read",
    LispNews.FLOODING: "asks for public addresses or registers them faster than is read",
    LispNews.REFUSED: "registers a public address that is not its: refused",
    LispNews.OUTDATED: "registers a public address that has moved on",
    LispNews.REGISTERED: "registered",
    LispNews.MOVED: "has it now",
    LispNews.EXPIRED: "registers it no more",
    LispNews.RLOC_DOWN: "answers no probe: packets take another way where there is one",
    LispNews.RLOC_UP: "answers probes again",
    LispNews.UNCONFIRMED: "does not confirm",
}
_LISP_EVENTS: Final = frozenset({
    LispNews.AUTHENTICATION_FAILED, LispNews.REPLAYED, LispNews.MALFORMED, LispNews.FLOODING,
    LispNews.REFUSED, LispNews.RLOC_DOWN, LispNews.RLOC_UP,
})  # fmt: skip


class FabricNewsBook:
    """The last lines, and those that the controller has not been told."""

    def __init__(self, *, is_edge: bool) -> None:
        self._is_edge = is_edge
        self.lines: deque[str] = deque(maxlen=NEWS_KEPT)
        self._untold: deque[str] = deque(maxlen=NEWS_KEPT)
        self._down: set[PortNumber] = set()

    def fabric(self, entry: FabricLog, trunk: str) -> None:
        """Take what the RBridge said; `trunk` is how its trunk is called, "" when it names none."""
        line = " ".join(filter(None, (trunk, _FABRIC[entry.news])))
        self.note(f"{line} ({entry.detail})", is_event=self._is_event(entry))

    def _is_event(self, entry: FabricLog) -> bool:
        """Tell whether it is for everybody.

        A trunk that comes up is so only after it was down, and edges alone tell of trunks: a node
        that dies takes all trunks to it along, and is told of as a node.
        """
        match entry.news:
            case FabricNews.ADJACENCY_DOWN:
                self._down.add(entry.port)
                return self._is_edge
            case FabricNews.ADJACENCY_UP:
                was_down = entry.port in self._down
                self._down.discard(entry.port)
                return self._is_edge and was_down
            case FabricNews.NEIGHBOUR_RESTARTED:
                return False
            case _:
                return True

    def lisp(self, entry: LispLog) -> None:
        """Take what the tunnel router or the map-server said."""
        line = f"{entry.who} {_LISP[entry.news]} ({entry.detail})"
        self.note(line, is_event=entry.news in _LISP_EVENTS)

    def note(self, line: str, *, is_event: bool = True) -> None:
        """Keep a line."""
        self.lines.append(f"{time.strftime('%H:%M:%S')} {line}")
        if is_event:
            self._untold.append(line)

    def take(self) -> tuple[str, ...]:
        """Return, once, the events since the last call."""
        found = tuple(self._untold)
        self._untold.clear()
        return found
