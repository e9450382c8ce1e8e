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

    def _chain(self, name: str) -> tuple[str, ...]:
        chain = [name]
        while (parent := self.elements[chain[-1]].parent) != "":
            if parent in chain:
                raise InvalidRequest(f"{name} feeds itself", field="parent")
            chain.append(parent)
        return tuple(chain)
