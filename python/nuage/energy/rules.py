"""Energy events and plans turned into the share of nodes in service (paper §II-E, §III-E).

Rules look at figures of now (temperature, price, carbon, a grid alert): above a threshold the
share falls, and rises again only `hysteresis` below it. Plans are dated: from then to then,
this share, known ahead. The lowest of all that apply is wanted. The share in service moves
there: down at once for a rule marked `urgent` (heat), otherwise by at most `ramp_per_min`.

`ShareController` is a machine: figures and the time in, a decision out; `rehearse` runs it
over figures foreseen and changes nothing (`nuage energy plan --what-if`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Final

from nuage.ids import NodeId
from nuage.model.energy import SharePlan, ShareRule

RAMP_PER_MIN: Final = 0.05  # the whole site in twenty minutes, as plans are known ahead
_TINY: Final = 1e-9


@dataclass(frozen=True, slots=True)
class ShareDecision:
    """The share in service from now on, what it is heading for, and because of what."""

    at_s: float
    share: float
    wanted: float
    because: tuple[str, ...]
    missing: tuple[str, ...] = ()


@dataclass(slots=True)
class ShareController:
    """Decides the share of one site's nodes in service."""

    rules: Sequence[ShareRule]
    plans: Sequence[SharePlan] = ()
    ramp_per_min: float = RAMP_PER_MIN
    share: float = 1.0
    _active: set[str] = field(default_factory=set)
    _last_s: float | None = None

    def decide(self, figures: Mapping[str, float], now_s: float) -> ShareDecision:
        """Take the figures of now; return the share from now on.

        A figure that is missing leaves its rules as they stand, and is named.
        """
        missing = []
        for rule in self.rules:
            value = figures.get(rule.figure)
            if value is None:
                missing.append(rule.figure)
            elif value > rule.above:
                self._active.add(rule.name)
            elif value <= rule.above - rule.hysteresis:
                self._active.discard(rule.name)
        reasons = [(r.share, r.name, r.urgent) for r in self.rules if r.name in self._active]
        reasons += [
            (plan.share, plan.name, False)
            for plan in self.plans
            if plan.begin_s <= now_s < plan.end_s
        ]
        wanted = min((share for share, _, _ in reasons), default=1.0)
        urgent = min((share for share, _, is_urgent in reasons if is_urgent), default=1.0)
        elapsed_s = 0.0 if self._last_s is None else max(now_s - self._last_s, 0.0)
        step = self.ramp_per_min * elapsed_s / 60.0
        ramped = min(max(wanted, self.share - step), self.share + step)
        self.share = min(ramped, urgent)
        self._last_s = now_s
        because = tuple(name for share, name, _ in reasons if share <= wanted + _TINY)
        return ShareDecision(now_s, self.share, wanted, because, tuple(dict.fromkeys(missing)))


def rehearse(
    controller: ShareController, foreseen: Iterable[tuple[float, Mapping[str, float]]]
) -> tuple[ShareDecision, ...]:
    """Return what `controller` would decide over (time, figures) foreseen; it is not changed."""
    copy = replace(controller, _active=set(controller._active))
    return tuple(copy.decide(figures, at_s) for at_s, figures in foreseen)


def nodes_in_service(
    nodes_by_efficiency: Sequence[NodeId], share: float, *, keep: Iterable[NodeId] = ()
) -> frozenset[NodeId]:
    """Return the most efficient `share` of the nodes (rounded up), and those to `keep`.

    Nodes come sorted, the best first (GreenDIET: ascending watts per flops).
    """
    count = ceil(share * len(nodes_by_efficiency) - _TINY)
    return frozenset(nodes_by_efficiency[:count]) | frozenset(keep)
