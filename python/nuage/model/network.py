"""Tenant networks: segments and ports (paper §II-D)."""

from dataclasses import dataclass

from nuage.ids import IaasId, PortId, SegmentId, VmId


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A layer-2 network of an IaaS; `label` is its 24-bit fine-grained label (RFC 7172)."""

    segment_id: SegmentId
    iaas_id: IaasId
    name: str
    label: int
    cidr: str
    gateway: str = ""
    mtu_bytes: int = 1362


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A VM's plug in a segment. `mac` and `addresses` are what anti-spoofing lets through."""

    port_id: PortId
    iaas_id: IaasId
    segment_id: SegmentId
    vm_id: VmId | None
    mac: str
    addresses: tuple[str, ...]
