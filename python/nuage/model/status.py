"""What a site says of its nodes, and of a VM on its way: facts that others need to see."""

from dataclasses import dataclass, field

from nuage.ids import IaasId, NodeId, SiteId, VmId


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """The last facts of a node, written by its site when they change.

    `replica_addresses` tells heads of other sites where the daemon of an IaaS listens.
    """

    node_id: NodeId
    site_id: SiteId
    connected: bool
    since_s: float
    replica_addresses: dict[IaasId, str] = field(default_factory=dict)
    free_bytes: int = 0
    total_bytes: int = 0
    accelerator: str = ""
    orphans: tuple[VmId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """A VM arriving at `target_node`; written by the target's site, gone once it has arrived."""

    vm_id: VmId
    source_site: SiteId
    source_node: NodeId
    target_node: NodeId
    source_epoch: int
    target_epoch: int
    address: str = ""
    failure: str = ""
