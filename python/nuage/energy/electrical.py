"""The electrical path: outlet → branch → feed → container, as limits on sums of watts.

A node with two power supplies draws from feeds A and B, half from each, until one fails; then
all of it comes through the other. So the load that counts on every element is the full draw
of every node that hangs on it: an element that holds that also holds when the other feed is
gone. That is the A/B failover headroom, and it makes each limit a plain sum.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from nuage.errors import InvalidRequest, NotFound
from nuage.ids import NodeId

CONTINUOUS_SHARE: Final = 0.8  # of a breaker's rating, for loads of hours
CONTAINER_WATTS: Final = 18_000.0  # the StarDC, paper §IV-B


class PathKind(Enum):
    """What an element of the path is."""

    OUTLET = "outlet"
    BRANCH = "branch"
    FEED = "feed"
    CONTAINER = "container"


@dataclass(frozen=True, slots=True, kw_only=True)
class PathElement:
    """One element; `limit_watts` is what it may carry for hours, `parent` what feeds it."""

    name: str
    kind: PathKind
    limit_watts: float
    parent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLimit:
    """An element of the path as a constraint: the watts of `node_ids` add up to at most that."""

    name: str
    limit_watts: float
    node_ids: frozenset[NodeId]


@dataclass(frozen=True, slots=True)
class Overload:
    """An element that carries too much, now or once a feed has failed."""

    name: str
    load_watts: float
    limit_watts: float


class PowerPath:
    """The elements of one site, and the outlets of each node (one, or A and B)."""

    def __init__(
        self, elements: Iterable[PathElement], outlets_of: Mapping[NodeId, tuple[str, ...]]
    ) -> None:
        self.elements = {element.name: element for element in elements}
        self.outlets_of = dict(outlets_of)
        for element in self.elements.values():
            if element.limit_watts <= 0:
                raise InvalidRequest(f"{element.name} carries nothing", field="limit_watts")
            if element.parent and element.parent not in self.elements:
                raise NotFound("element of the electrical path", element.parent)
        self._above = {name: self._chain(name) for name in self.elements}
        for node_id, outlets in self.outlets_of.items():
            for outlet in outlets:
                if outlet not in self.elements:
                    raise NotFound(f"outlet of {node_id}", outlet)

    def limits(self) -> tuple[PowerLimit, ...]:
        """Return every element that a node hangs on, as a constraint with failover headroom."""
        members: dict[str, set[NodeId]] = {}
        for node_id, outlets in self.outlets_of.items():
            for outlet in outlets:
                for name in self._above[outlet]:
                    members.setdefault(name, set()).add(node_id)
        return tuple(
            PowerLimit(
                name=f"{self.elements[name].kind.value} {name}",
                limit_watts=self.elements[name].limit_watts,
                node_ids=frozenset(node_ids),
            )
            for name, node_ids in sorted(members.items())
        )

    def load_watts(
        self, node_watts: Mapping[NodeId, float], *, failed: str = ""
    ) -> dict[str, float]:
        """Return what each element carries, with the element `failed` (and all under it) dead.

        A node with no live outlet is dark and draws nothing.
        """
        load = dict.fromkeys(self.elements, 0.0)
        for node_id, watts in node_watts.items():
            live = [o for o in self.outlets_of.get(node_id, ()) if failed not in self._above[o]]
            for outlet in live:
                for name in self._above[outlet]:
                    load[name] += watts / len(live)
        return load

    def overloads(
        self, node_watts: Mapping[NodeId, float], *, failed: str = ""
    ) -> tuple[Overload, ...]:
        """Return the elements that carry more than their limit."""
        load = self.load_watts(node_watts, failed=failed)
        return tuple(
            Overload(name, watts, self.elements[name].limit_watts)
            for name, watts in sorted(load.items())
            if watts > self.elements[name].limit_watts + 1e-9
        )

    def paths_of(self, node_id: NodeId) -> tuple[tuple[str, ...], ...]:
        """Return the node's paths, outlet first."""
        return tuple(self._above[outlet] for outlet in self.outlets_of.get(node_id, ()))

    def _chain(self, name: str) -> tuple[str, ...]:
        chain = [name]
        while (parent := self.elements[chain[-1]].parent) != "":
            if parent in chain:
                raise InvalidRequest(f"{name} feeds itself", field="parent")
            chain.append(parent)
        return tuple(chain)
