"""What the five steps of placement say to each other (paper §II-E)."""

from dataclasses import dataclass, field

from nuage.ids import IaasId, NodeId, RequestId, SiteId, VmId
from nuage.model.contract import Contract
from nuage.model.vm import VmShape


@dataclass(frozen=True, slots=True, kw_only=True)
class VmRequest:
    """Step 1: what a client asks for. `sites_near_data` hold a copy of its volume.

    `nodes_fenced` are the only nodes that it may use (none named: any), `nodes_banned` those it
    may not, by the owner's word; `nodes_excluded` is this request's alone.
    """

    request_id: RequestId
    vm_id: VmId
    iaas_id: IaasId
    shape: VmShape
    contract: Contract
    preference: float = 0.0
    site_wanted: SiteId | None = None
    node_wanted: NodeId | None = None
    nodes_excluded: tuple[NodeId, ...] = ()
    nodes_fenced: tuple[NodeId, ...] = ()
    nodes_banned: tuple[NodeId, ...] = ()
    sites_near_data: tuple[SiteId, ...] = ()
    vms_near: tuple[VmId, ...] = ()
    vms_apart: tuple[VmId, ...] = ()
    policy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimationVector:
    """What a SeD knows of its V-node, pushed to its Local Agent when it changes.

    `power_watts` is the node's draw now, from `power_source` (outlet, bmc, rapl, model) read
    at `power_read_s`; `flops` is the calibrated performance of all cores. `mean_power_watts`
    is the paper's dynamic metric (drawn at `mean_utilisation`): power averaged over the last
    requests served, weighted by
    time; 0.0 with `requests_served` 0 marks a node without history. `vcpu_free` counts at
    `vcpu_overcommit` vCPUs a core; a preserved vCPU takes a core's whole share of them.
    """

    node_id: NodeId
    site_id: SiteId
    sent_s: float
    cpu_count: int
    vcpu_free: int
    memory_free_mib: int
    flops: float
    power_watts: float
    power_source: str
    power_read_s: float
    idle_watts: float
    peak_watts: float
    cpu_utilisation: float
    mean_power_watts: float = 0.0
    mean_utilisation: float = 1.0
    requests_served: int = 0
    vm_count: int = 0
    running: tuple[VmId, ...] = ()
    in_service: bool = True
    booted: bool = True
    boot_time_s: float = 0.0
    boot_energy_joules: float = 0.0
    maintenance: bool = False
    accelerator: str = "tcg"
    vcpu_overcommit: float = 1.0
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Step 3: one candidate's answer. `costs` are named columns that the policy ranks by."""

    node_id: NodeId
    site_id: SiteId
    costs: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A candidate that said no, by rule. `node_id` None: the whole site, or `node_count` of it."""

    site_id: SiteId
    node_id: NodeId | None
    rule: str
    reason: str
    node_count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Bid:
    """Step 3: all that one Local Agent answers to a request."""

    site_id: SiteId
    estimates: tuple[Estimate, ...]
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedCandidate:
    """Step 4: a candidate with its score (lower is better) and the terms that made it."""

    node_id: NodeId
    site_id: SiteId
    score: float
    terms: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was decided, kept so that `nuage vm explain` can tell it afterwards."""

    request_id: RequestId
    vm_id: VmId
    policy: str
    decided_s: float
    asked_sites: tuple[SiteId, ...]
    silent_sites: tuple[SiteId, ...]
    ranked: tuple[RankedCandidate, ...]
    refusals: tuple[Refusal, ...]
    elected: NodeId | None
    elected_site: SiteId | None
