"""TIA-942 tiers as a check over what is modelled, never a label that is typed in (table II).

A facility's power and cooling are alternatives of components in series. From their MTBF and
MTTR follows the availability; from their structure what can be taken out, or may fail, with
the load still carried. The tier supported is the highest whose availability *and* structure
are met.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from nuage.errors import InvalidRequest

# Paper table II; TIA-942 states them as percentages.
TIER_AVAILABILITY: Final = {1: 0.99671, 2: 0.99741, 3: 0.99982, 4: 0.99995}


@dataclass(frozen=True, slots=True)
class Component:
    """Something that fails every `mtbf_h` hours and is repaired in `mttr_h`."""

    name: str
    mtbf_h: float
    mttr_h: float

    def __post_init__(self) -> None:
        if self.mtbf_h <= 0 or self.mttr_h < 0:
            raise InvalidRequest("mtbf_h is above 0, mttr_h not below", field=self.name)

    @property
    def availability(self) -> float:
        """The part of time it works."""
        return self.mtbf_h / (self.mtbf_h + self.mttr_h)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subsystem:
    """Power, or cooling: `paths` are alternatives; a stage of a path is N of its components.

    Each stage is (components, how many of them are needed). `active_paths` says how many
    carry load at all times; fewer than two means that a failure is felt until the switch.
    """

    name: str
    paths: tuple[tuple[tuple[tuple[Component, ...], int], ...], ...]
    active_paths: int = 1

    @property
    def availability(self) -> float:
        """At least one path works; a path works when each stage has what it needs."""
        return 1.0 - prod(
            1.0 - prod(at_least([c.availability for c in stage], needed) for stage, needed in path)
            for path in self.paths
        )

    @property
    def has_spare_components(self) -> bool:
        """Every stage of every path has one more than it needs, or there is another path."""
        return len(self.paths) > 1 or all(
            len(stage) > needed for path in self.paths for stage, needed in path
        )

    @property
    def is_maintainable(self) -> bool:
        """Any component can be taken out with the load carried: a second path."""
        return len(self.paths) > 1

    @property
    def is_fault_tolerant(self) -> bool:
        """Two active paths: any one failure is not felt."""
        return len(self.paths) > 1 and self.active_paths > 1


@dataclass(frozen=True, slots=True)
class TierCheck:
    """What a facility supports against what it claims; `findings` say what is missing."""

    claimed: int
    supported: int
    availability: float
    findings: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Tell whether the claim is met."""
        return self.supported >= self.claimed


def check_tier(claimed: int, subsystems: Sequence[Subsystem]) -> TierCheck:
    """Check a claimed tier against the modelled paths of power and cooling."""
    if claimed not in TIER_AVAILABILITY:
        raise InvalidRequest("a tier is 1 to 4", field="tier")
    availability = prod(subsystem.availability for subsystem in subsystems)
    supported = 0
    findings: list[str] = []
    for tier, needed in TIER_AVAILABILITY.items():
        missing = [f"tier {tier}: {reason}" for s in subsystems for reason in _missing(tier, s)]
        if availability < needed:
            missing.append(f"tier {tier}: availability {availability:.5%} is below {needed:.3%}")
        if missing:
            findings = missing
            break
        supported = tier
    return TierCheck(claimed, supported, availability, tuple(findings))


def _missing(tier: int, subsystem: Subsystem) -> list[str]:
    missing = []
    if tier >= 2 and not subsystem.has_spare_components:
        missing.append(f"{subsystem.name} has a component without a spare")
    if tier >= 3 and not subsystem.is_maintainable:
        missing.append(f"{subsystem.name} has one path only")
    if tier >= 4 and not subsystem.is_fault_tolerant:
        missing.append(f"{subsystem.name} has one active path only")
    return missing


def at_least(availabilities: Sequence[float], needed: int) -> float:
    """Return the probability that at least `needed` of independent parts work.

    Over sites, the availability of an IaaS whose service runs in several: with one needed
    that is `1 - Π (1 - A_i)`.
    """
    working = [1.0]
    for availability in availabilities:
        grown = [0.0] * (len(working) + 1)
        for count, chance in enumerate(working):
            grown[count] += chance * (1.0 - availability)
            grown[count + 1] += chance * availability
        working = grown
    return min(sum(working[needed:]), 1.0) if needed > 0 else 1.0
