"""How many bytes have been promised of an IO-node: the sizes of the volumes with copies there.

A copy counts with its volume's whole size from its record on, so while it is filled too, and until
it is off the node. A clone counts whole: it may be overwritten whole. A template of an image counts
nothing: nobody writes to it. History and snapshots count nothing either: the contract's journal
bounds them, and they are seen as space used.
"""

from collections.abc import Mapping

from nuage.ids import IaasId, NodeId
from nuage.model.volume import Volume

NOTHING: Mapping[IaasId, int] = {}


class Promises:
    """Sums of bytes by node and IaaS; no entry is left of what is gone."""

    def __init__(self) -> None:
        self._bytes: dict[NodeId, int] = {}
        self._by_iaas: dict[NodeId, dict[IaasId, int]] = {}

    def count(self, volume: Volume, sign: int) -> None:
        """Count a volume in (1) or out (-1) on the nodes of its copies."""
        if not volume.is_template:
            for place in volume.replicas:
                self.add(place.node_id, volume.iaas_id, sign * volume.size_bytes)

    def add(self, node_id: NodeId, iaas_id: IaasId, size_bytes: int) -> None:
        """Count bytes in, or out where they are less than nothing."""
        total_bytes = self._bytes.get(node_id, 0) + size_bytes
        tenants = self._by_iaas.setdefault(node_id, {})
        tenants[iaas_id] = tenants.get(iaas_id, 0) + size_bytes
        if not tenants[iaas_id]:
            del tenants[iaas_id]
        if tenants:
            self._bytes[node_id] = total_bytes
        else:
            del self._by_iaas[node_id]
            self._bytes.pop(node_id, None)

    def on(self, node_id: NodeId) -> int:
        """Return what is promised of a node."""
        return self._bytes.get(node_id, 0)

    def by_iaas(self, node_id: NodeId) -> Mapping[IaasId, int]:
        """Return what is promised of a node to each IaaS."""
        return self._by_iaas.get(node_id, NOTHING)
