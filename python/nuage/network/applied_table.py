"""What one RBridge has applied to its forwarding plane, and how that becomes something else.

Pure. Every change of the plane's fabric entries goes through here and comes out as a delta: a plane
that starts empty and takes all deltas in order holds `entries`.

Between two trees there is a rest. The reverse-path check (RFC 6325 §4.5.2) knows one port for each
ingress: a node that had a frame by its old port and then changes the entry would take the frame
once more by its new port, if that way is longer. So an entry that names another port than before
names none for `REST_S`, and what comes meanwhile is refused (`Drop.TREE_REST`). Nothing goes twice
then, whatever others know and whenever they hear of it: let X be the first node that takes a frame
twice. No neighbour sent it twice over one trunk, for it took it once; so X took it by two ports,
`REST_S` apart at least, and the frame was under way for so long over trunks that lie between
different nodes. It is the time a frame may take through the whole campus that `REST_S` bounds.
Frames to one station do not ask this check, and go on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from nuage.network.forwarding import (
    PORT_NONE,
    AdjacencyEntry,
    Entry,
    EntryKey,
    FibEntry,
    ForwardingDelta,
    Nickname,
    PortNumber,
    RpfEntry,
    delta_between,
    fabric_entries,
    table,
)

REST_S: Final = 0.2  # longer than any way on land; what it costs: docs/design/network.md


class AppliedTable:
    """The fabric entries of one plane."""

    def __init__(self, known: Iterable[Entry]) -> None:
        """Begin with what the plane holds."""
        self._entries: dict[EntryKey, Entry] = table(fabric_entries(known))
        self._before: dict[EntryKey, tuple[PortNumber, float]] = {}  # and until when no other may
        self._after: dict[EntryKey, RpfEntry] = {}  # what an entry at rest will be

    @property
    def entries(self) -> Mapping[EntryKey, Entry]:
        """Return what the plane holds, by key."""
        return self._entries

    def path_to(self, egress: Nickname) -> FibEntry | None:
        """Return the path to a nickname."""
        entry = self._entries.get((FibEntry, egress))
        return entry if isinstance(entry, FibEntry) else None

    def paths(self) -> list[FibEntry]:
        """Return all paths."""
        return [entry for entry in self._entries.values() if isinstance(entry, FibEntry)]

    def become(self, new: Mapping[EntryKey, Entry], now_s: float) -> ForwardingDelta:
        """Change to `new`, by way of a rest where a reverse-path entry names another port."""
        for key, old in self._entries.items():
            if isinstance(old, RpfEntry) and old.port != PORT_NONE and new.get(key) != old:
                self._before[key] = (old.port, now_s + REST_S)
        self._after.clear()
        resting: dict[EntryKey, Entry] = {}
        for key, (port, until_s) in list(self._before.items()):
            wish = new.get(key)
            if now_s >= until_s or (isinstance(wish, RpfEntry) and wish.port == port):
                del self._before[key]
            elif isinstance(wish, RpfEntry):
                self._after[key] = wish
                resting[key] = replace(wish, port=PORT_NONE)
        return self._change_to({**new, **resting})

    def without_neighbour(self, port: PortNumber) -> ForwardingDelta:
        """Take a lost neighbour away: paths go by their other hops, or by backups."""
        return self._change_to(
            {key: entry for key, entry in self._entries.items() if key != (AdjacencyEntry, port)}
        )

    def with_paths(self, paths: Iterable[FibEntry]) -> ForwardingDelta:
        """Replace paths by what has been found to be better."""
        return self._change_to({**self._entries, **table(paths)})

    def next_deadline_s(self) -> float:
        """Return when the first rest ends."""
        return min((self._before[key][1] for key in self._after), default=float("inf"))

    def tick(self, now_s: float) -> ForwardingDelta:
        """End the rests that are over."""
        over = [key for key in self._after if now_s >= self._before[key][1]]
        found = {key: self._after.pop(key) for key in over}
        for key in over:
            del self._before[key]
        return self._change_to({**self._entries, **found}) if found else ForwardingDelta()

    def _change_to(self, new: dict[EntryKey, Entry]) -> ForwardingDelta:
        delta = delta_between(self._entries, new)
        self._entries = new
        return delta
