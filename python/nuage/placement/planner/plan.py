"""A plan: timed steps, each with its reason, and what carrying it out costs."""

from dataclasses import dataclass
from enum import Enum

from nuage.ids import NodeId, VmId
from nuage.placement.planner.constraints import Violation


class Act(Enum):
    """What a step does."""

    POWER_ON = "power-on"
    BOOT = "boot"  # a VM that does not run yet
    MIGRATE = "migrate"
    POWER_OFF = "power-off"


class Reason(Enum):
    """Why a step is taken: the paper's four reasons, and what follows from them."""

    DEFECTION = "hardware defection"
    PERFORMANCE = "performance"
    ENERGY = "energy"
    QOS = "quality of service"
    REQUEST = "asked for"
    WAY = "makes way"  # for another step: a pivot, or a node woken


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One act from `begin_s` to `end_s` (seconds from the plan's start)."""

    act: Act
    begin_s: float
    end_s: float
    node_id: NodeId
    vm_id: VmId | None = None
    from_node: NodeId | None = None
    reason: Reason = Reason.REQUEST
    joules: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Steps in order of begin. `unsolved` is what the plan cannot cure, and is shown."""

    steps: tuple[Step, ...]
    unsolved: tuple[Violation, ...] = ()
    saved_watts: float = 0.0

    @property
    def duration_s(self) -> float:
        """When the last step ends."""
        return max((step.end_s for step in self.steps), default=0.0)

    @property
    def joules(self) -> float:
        """What the steps cost: migrations and switching."""
        return sum(step.joules for step in self.steps)

    @property
    def migration_count(self) -> int:
        """How many migrations, pivots included."""
        return sum(step.act is Act.MIGRATE for step in self.steps)

    @property
    def pays_after_s(self) -> float:
        """How long the new placement must last to save more than the plan costs."""
        return self.joules / self.saved_watts if self.saved_watts > 0 else float("inf")
