"""What a site says of its energy, and what its operator wants of it (paper §II-E, §III-E).

Facts travel to the other sites as `SiteEnergy`, the operator's wish as `EnergyRules`; both have
their home at the site. Plans and reports are answers, never stored in a catalogue.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from nuage.errors import InvalidRequest
from nuage.ids import EnergySourceId, IaasId, NodeId, SiteId, VmId

FIGURES = ("temperature_c", "price_eur_per_mwh", "price_index", "carbon_g_per_kwh", "grid_alert")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareRule:
    """Above `above` of `figure`, at most `share` of the nodes are in service."""

    name: str
    figure: str
    above: float
    share: float
    hysteresis: float = 0.0
    urgent: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise InvalidRequest("share is 0 to 1", field=f"rules.{self.name}.share")
        if self.hysteresis < 0:
            raise InvalidRequest("hysteresis is not negative", field=f"rules.{self.name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SharePlan:
    """A dated share: a price peak announced, a maintenance, a test of the generator."""

    name: str
    begin_s: float
    end_s: float
    share: float

    def __post_init__(self) -> None:
        if self.end_s <= self.begin_s:
            raise InvalidRequest("a plan ends after it begins", field=f"plans.{self.name}.end_s")
        if not 0.0 <= self.share <= 1.0:
            raise InvalidRequest("share is 0 to 1", field=f"plans.{self.name}.share")


class EnergyMode(Enum):
    """Who begins a plan that saves energy; evacuations for maintenance begin by themselves."""

    MANUAL = "manual"
    AUTOMATIC = "automatic"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyRules:
    """What the operator of a site wants.

    `hold_s` is how long a placement is expected to last: what does not pay within it is not
    done. `nodes_kept_on` V-nodes stay on whatever happens, so that a VM never waits for a boot
    when there is room on them.
    """

    site_id: SiteId
    rules: tuple[ShareRule, ...] = ()
    plans: tuple[SharePlan, ...] = ()
    mode: EnergyMode = EnergyMode.MANUAL
    ramp_per_min: float = 0.05
    hold_s: float = 3600.0
    look_every_s: float = 300.0
    nodes_kept_on: int = 1

    def __post_init__(self) -> None:
        if self.ramp_per_min <= 0 or self.hold_s <= 0 or self.look_every_s <= 0:
            raise InvalidRequest("ramp, hold and look-every are above zero", field="rules")
        if self.nodes_kept_on < 0:
            raise InvalidRequest("nodes_kept_on is not negative", field="nodes_kept_on")
        require_figures(rule.figure for rule in self.rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEnergy:
    """A node's draw, from which meter and when. `power` is `on`, `off` or between."""

    node_id: NodeId
    watts: float
    source: str
    read_s: float
    power: str
    in_service: bool


@dataclass(frozen=True, slots=True)
class DatedValue:
    """A figure of a public source over [begin, end); `dew_point_c` beside a temperature."""

    begin_s: float
    end_s: float
    value: float
    dew_point_c: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergySource:
    """What a site keeps of a public source: dated figures, and when they were fetched.

    `unit` is of the values; a Tempo calendar has `colours` by local day (ISO 8601) instead.
    """

    source_id: EnergySourceId
    site_id: SiteId
    source: str
    unit: str
    fetched_s: float
    values: tuple[DatedValue, ...] = ()
    colours: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceHealth:
    """How a source does: last answer, until when it reaches, and what was wrong last, if it was.

    `address` is where it is asked, without query: a query may hold the site's key.
    """

    source: str
    address: str
    fetched_s: float | None
    reaches_s: float | None
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSeen:
    """What a site's modelled paths of power and cooling support; `findings` say what is missing."""

    supported: int
    availability: float
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteEnergy:
    """A site's energy now. Sources say where a figure comes from, "" for one not known.

    `it_watts` is what its PDUs deliver, or the sum of its nodes where no PDU is read. `pue` is
    of `pue_boundary`, IT read in `pue_category` (ISO/IEC 30134-2). `…_read_s` is when a figure
    was measured or fetched, None for one that does not age, such as a contract's price.
    """

    site_id: SiteId
    read_s: float
    it_watts: float
    pue: float
    pue_boundary: str
    pue_category: int
    cooling: str
    outside_celsius: float | None = None
    outside_source: str = ""
    outside_read_s: float | None = None
    price_eur_per_mwh: float | None = None
    price_source: str = ""
    price_read_s: float | None = None
    carbon_g_per_kwh: float | None = None
    carbon_source: str = ""
    carbon_read_s: float | None = None
    share: float = 1.0
    share_wanted: float = 1.0
    because: tuple[str, ...] = ()
    mode: EnergyMode = EnergyMode.MANUAL
    nodes: tuple[NodeEnergy, ...] = ()
    silent_meters: tuple[str, ...] = ()
    refused_readings: tuple[str, ...] = ()
    public_sources: tuple[SourceHealth, ...] = ()
    tier: TierSeen | None = None
    renewable_share: float = 0.0
    reused_share: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """One act of a plan, and how far it is: planned, running, done, failed, skipped."""

    number: int
    act: str
    node_id: NodeId
    begin_s: float
    end_s: float
    reason: str
    joules: float
    vm_id: VmId | None = None
    vm_name: str = ""
    from_node: NodeId | None = None
    state: str = "planned"
    told: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeseenHour:
    """What the rules would do at a moment to come, from the figures foreseen for it."""

    at_s: float
    temperature_c: float | None
    pue: float
    price_eur_per_mwh: float | None
    share: float
    because: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyPlan:
    """A plan, dry or under way. `pays_after_s` None: it saves nothing by itself."""

    site_id: SiteId
    made_s: float
    state: str
    steps: tuple[PlannedStep, ...]
    joules: float
    saved_watts: float
    pays_after_s: float | None
    unsolved: tuple[str, ...] = ()
    foreseen: tuple[ForeseenHour, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyRow:
    """A line of the report; `iaas_id` "" is what no IaaS asked for, the site's own."""

    month: str
    site_id: SiteId
    iaas_id: IaasId
    iaas_name: str
    it_kwh: float
    facility_kwh: float
    cost_eur: float
    carbon_g: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VmEnergy:
    """Joules at the outlets that a VM has used at its present site."""

    vm_id: VmId
    site_id: SiteId
    it_joules: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAsk:
    """What a plan is to do: empty these nodes, and (or) switch off what need not be on.

    `figures` are taken in place of those of now (`nuage energy plan --what-if`); nodes that the
    rules would then take out of service are to be emptied too.
    """

    drain: tuple[NodeId, ...] = ()
    consolidate: bool = True
    figures: dict[str, float] = field(default_factory=dict)
    hours: int = 24

    def __post_init__(self) -> None:
        require_figures(self.figures)
        if not 0 <= self.hours <= 168:
            raise InvalidRequest("hours is 0 to 168", field="hours")


def require_figures(names: Iterable[str]) -> None:
    """Raise InvalidRequest unless all are figures that rules look at."""
    for name in names:
        if name not in FIGURES:
            raise InvalidRequest(
                f"no figure {name!r}; there are {', '.join(FIGURES)}", field="figures"
            )
