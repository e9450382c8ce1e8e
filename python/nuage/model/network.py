"""Tenant networks: segments and ports (paper §II-D)."""

from dataclasses import dataclass

from nuage.ids import IaasId, PoolId, PortId, SecurityGroupId, SegmentId, VmId


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
    """A VM's plug in a segment. `mac` and `addresses` are what anti-spoofing lets through.

    Without `security_groups` the segment's own stations reach it and nobody else does.
    `rate_mbit` 0 is what the contract's class gives.
    """

    port_id: PortId
    iaas_id: IaasId
    segment_id: SegmentId
    vm_id: VmId | None
    mac: str
    addresses: tuple[str, ...]
    security_groups: tuple[SecurityGroupId, ...] = ()
    rate_mbit: int = 0


@dataclass(frozen=True, slots=True)
class GroupRule:
    """One allowance: of a prefix (`remote`), of a group's ports, or (neither) of anybody."""

    ingress: bool = True
    protocol: str = "any"
    remote: str = ""
    remote_group: SecurityGroupId | None = None
    port_first: int = 0
    port_last: int = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityGroup:
    """What ports of an IaaS that are in the group let in (and out, which is all by default)."""

    group_id: SecurityGroupId
    iaas_id: IaasId
    name: str
    rules: tuple[GroupRule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressPool:
    """A prefix of public addresses, whose home gives them out. `prefix` is in CIDR form."""

    pool_id: PoolId
    name: str
    prefix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicAddress:
    """An address that an IaaS owns: a LISP EID, which goes wherever its port's VM goes.

    Its home is its pool's, and stays that: a VM that moves changes no record of its address.
    A `port_id` that no port has any more counts as None.
    """

    address: str
    iaas_id: IaasId
    pool_id: PoolId
    port_id: PortId | None = None
