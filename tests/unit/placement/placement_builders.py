"""Sites, vectors and requests with sensible values, for the placement tests."""

from typing import Any

from nuage.ids import IaasId, NodeId, RequestId, SiteId, VmId
from nuage.model.contract import Contract
from nuage.model.infrastructure import Datacenter, Operator
from nuage.model.placement import EstimationVector, VmRequest
from nuage.model.vm import VmShape


def site(name: str = "marne", **changes: Any) -> Datacenter:
    values: dict[str, Any] = {
        "site_id": SiteId(name),
        "place": name,
        "country": "FR",
        "operator": Operator("Celeste", "FR"),
        "tier": 3,
        "power_capacity_watts": 18_000.0,
    }
    return Datacenter(**(values | changes))


def vector(node: str = "marne-v1", **changes: Any) -> EstimationVector:
    values: dict[str, Any] = {
        "node_id": NodeId(node),
        "site_id": SiteId(node.split("-", maxsplit=1)[0]),
        "sent_s": 0.0,
        "cpu_count": 12,
        "vcpu_free": 12,
        "memory_free_mib": 32_768,
        "flops": 220.8e9,
        "power_watts": 60.0,
        "power_source": "outlet",
        "power_read_s": 0.0,
        "idle_watts": 56.0,
        "peak_watts": 205.0,
        "cpu_utilisation": 0.0,
    }
    return EstimationVector(**(values | changes))


def request(number: int = 1, **changes: Any) -> VmRequest:
    values: dict[str, Any] = {
        "request_id": RequestId(f"req-{number}"),
        "vm_id": VmId(f"vm-{number}"),
        "iaas_id": IaasId("iaas-1"),
        "shape": VmShape(vcpu_count=1, memory_mib=1024),
        "contract": Contract(),
    }
    return VmRequest(**(values | changes))
