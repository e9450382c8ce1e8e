"""Use cases on IaaSes, their contracts and segments (paper §IV-C)."""

from dataclasses import dataclass, field

from nuage.errors import Conflict, InvalidRequest, QuotaExceeded
from nuage.iaas.addresses import parse_network
from nuage.iaas.dismantling import auditors_to_be, clear_away_everywhere
from nuage.iaas.fabric_keys import newest_generation
from nuage.iaas.operations import (
    Operation,
    OperationTable,
    Shown,
    any_scope,
    anywhere,
    federation_scope,
    iaas_home,
    iaas_scope,
)
from nuage.iaas.showing import show
from nuage.iaas.site import Site
from nuage.ids import EntropySource, IaasId, SegmentId, SiteId, new_id
from nuage.model.contract import AckPolicy, Contract, require_satisfiable
from nuage.model.iaas import Iaas, IaasKey, PastIaas
from nuage.model.image import Image
from nuage.model.infrastructure import Datacenter
from nuage.model.network import Port, PublicAddress, Segment
from nuage.model.vm import Vm
from nuage.model.volume import Volume
from nuage.trust.permissions import Principal, Scope, is_allowed

LABEL_MIN = 0x100  # below it: the fabric's own (RFC 7172 keeps 0 and 0xFFF of each half)
LABEL_MAX = 0xFFFFEF
DEFAULT_SEGMENT = "default"
DEFAULT_CIDR = "10.0.0.0/20"


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateIaas:
    """Build an IaaS under a contract; with `tenant_key` only its holder can unlock its data."""

    name: str
    contract: Contract = Contract()
    owner: str = ""
    cidr: str = DEFAULT_CIDR
    encrypted: bool = False
    tenant_key: str = field(default="", repr=False)  # 64 hexadecimal digits; never stored


@dataclass(frozen=True, slots=True)
class NameIaas:
    """Name an IaaS by id or name."""

    iaas: str


@dataclass(frozen=True, slots=True)
class ListIaas:
    """Ask for all IaaSes that the caller may see."""


def free_label(taken: set[int], entropy: EntropySource) -> int:
    """Draw a 24-bit label that nobody known uses."""
    while True:
        label = int.from_bytes(entropy(3), "big")
        if (
            LABEL_MIN <= label <= LABEL_MAX
            and label & 0xFFF not in (0, 0xFFF)
            and label not in taken
        ):
            return label


def require_sound(site: Site, contract: Contract) -> None:
    """Raise unless `contract` names sites that there are, and some set of them can meet it."""
    needed = {AckPolicy.ANY_2_OF_3: 3, AckPolicy.METRO: 3, AckPolicy.ALL: 1, AckPolicy.LOCAL: 1}
    if contract.copies < needed[contract.ack_policy]:
        raise InvalidRequest(
            f"{contract.ack_policy.value} needs {needed[contract.ack_policy]} copies, "
            f"the contract has {contract.copies}",
            field="contract.ack_policy",
            hint="with two copies use all: no loss, and writes wait for both until you degrade it",
        )
    for name in contract.sites:
        site.index.value(Datacenter, name)
    require_satisfiable(contract, site.index.values(Datacenter))


async def create_iaas(site: Site, principal: Principal, body: CreateIaas) -> Shown[Iaas]:
    """Build an IaaS: its contract checked, its label and its first segment made."""
    require_sound(site, body.contract)
    if site.index.is_name_taken(Iaas, body.name):
        raise Conflict(f"there is an IaaS named {body.name!r} already")
    taken = {i.label for i in site.index.values(Iaas)}
    taken |= {s.label for s in site.index.values(Segment)}
    iaas = Iaas(
        iaas_id=IaasId(new_id("iaas", site.entropy)),
        name=body.name,
        owner=body.owner or principal.name,
        contract=body.contract,
        label=free_label(taken, site.entropy),
        encrypted=body.encrypted or bool(body.tenant_key),
    )
    segment = _new_segment(site, iaas, DEFAULT_SEGMENT, body.cidr, taken | {iaas.label})
    keys = []
    if iaas.encrypted:
        generation = max(newest_generation(site.index), site.keyring.generation)
        keys.append(site.keyring.make(iaas.iaas_id, body.tenant_key, generation=generation))
    await site.save(iaas, segment, *keys, unique_name=True)
    site.announce("iaas", iaas.iaas_id, "created", f"IaaS {iaas.name} built for {iaas.owner}")
    return show(site, iaas)


def _new_segment(site: Site, iaas: Iaas, name: str, cidr: str, taken: set[int]) -> Segment:
    network = parse_network(cidr)
    return Segment(
        segment_id=SegmentId(new_id("seg", site.entropy)),
        iaas_id=iaas.iaas_id,
        name=name,
        label=free_label(taken, site.entropy),
        cidr=str(network),
        gateway=str(network[1]),
    )


async def list_iaas(site: Site, principal: Principal, _body: ListIaas) -> list[Shown[Iaas]]:
    """Show the IaaSes that the caller may see, by name."""
    seen = [
        i
        for i in site.index.values(Iaas)
        if is_allowed(principal, "iaas.read", Scope(iaas_id=i.iaas_id))
    ]
    return [show(site, iaas) for iaas in sorted(seen, key=lambda i: i.name)]


async def show_iaas(site: Site, _principal: Principal, body: NameIaas) -> Shown[Iaas]:
    """Show one IaaS."""
    return show(site, site.index.iaas_named(body.iaas))


async def delete_iaas(site: Site, _principal: Principal, body: NameIaas) -> None:
    """Take an IaaS down; it must be empty of VMs and volumes."""
    iaas = site.index.iaas_named(body.iaas)
    left = [vm.name for vm in site.index.of_iaas(Vm, iaas.iaas_id)]
    volumes = site.index.of_iaas(Volume, iaas.iaas_id)
    left += [volume.name for volume in volumes if not volume.is_template]
    left += [each.address for each in site.index.of_iaas(PublicAddress, iaas.iaas_id)]
    left += [f"image {image.name}" for image in site.index.of_iaas(Image, iaas.iaas_id)]
    if left:
        raise Conflict(
            f"IaaS {iaas.name} still has {', '.join(left[:8])}",
            hint="delete its VMs, volumes, public addresses and images first",
        )
    past = PastIaas(
        iaas_id=iaas.iaas_id,
        name=iaas.name,
        owner=iaas.owner,
        contract=iaas.contract,
        deleted_s=site.clock.now_s(),
        auditors=auditors_to_be(site, iaas.iaas_id),
    )
    await site.save(past)
    await clear_away_everywhere(site, iaas.iaas_id)
    key = site.index.find_value(IaasKey, iaas.iaas_id)
    await site.delete(iaas, *([] if key is None else [key]))
    site.keyring.forget(iaas.iaas_id)
    site.announce("iaas", iaas.iaas_id, "deleted", f"IaaS {iaas.name} taken down")


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateSegment:
    """Make a layer-2 network for an IaaS."""

    iaas: str
    name: str
    cidr: str = DEFAULT_CIDR


async def create_segment(site: Site, _principal: Principal, body: CreateSegment) -> Shown[Segment]:
    """Make a segment with a fresh label; tenants may overlap addresses."""
    iaas = site.index.iaas_named(body.iaas)
    taken = {i.label for i in site.index.values(Iaas)}
    taken |= {s.label for s in site.index.values(Segment)}
    segment = _new_segment(site, iaas, body.name, body.cidr, taken)
    await site.save(segment, unique_name=True)
    site.announce("segment", segment.segment_id, "created", f"segment {body.name} of {iaas.name}")
    return show(site, segment)


@dataclass(frozen=True, slots=True)
class NameSegment:
    """Name a segment of an IaaS, by name or id."""

    iaas: str
    segment: str


async def delete_segment(site: Site, _principal: Principal, body: NameSegment) -> None:
    """Delete a segment in which no VM is.

    Raises:
        Conflict: VMs are in it; they are named.
    """
    segment = _segment(site, body)
    held = [
        vm.name
        for vm in site.index.of_iaas(Vm, segment.iaas_id)
        if vm.segment_id == segment.segment_id
    ]
    if held:
        raise Conflict(f"segment {segment.name} is in use by {', '.join(held[:8])}")
    await site.delete(segment)
    site.announce("segment", segment.segment_id, "deleted", f"segment {segment.name} is gone")


def _segment(site: Site, body: NameSegment) -> Segment:
    return site.index.named(Segment, body.segment, site.index.iaas_named(body.iaas).iaas_id)


def segment_home(site: Site, body: NameSegment) -> SiteId | None:
    """Let the site that made the segment answer."""
    return site.index.home("segment", _segment(site, body).segment_id)


async def list_segments(site: Site, _principal: Principal, body: NameIaas) -> list[Shown[Segment]]:
    """Show an IaaS's segments."""
    iaas = site.index.iaas_named(body.iaas)
    return [show(site, segment) for segment in site.index.of_iaas(Segment, iaas.iaas_id)]


async def list_ports(site: Site, _principal: Principal, body: NameIaas) -> list[Shown[Port]]:
    """Show an IaaS's ports."""
    iaas = site.index.iaas_named(body.iaas)
    return [show(site, port) for port in site.index.of_iaas(Port, iaas.iaas_id)]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaUse:
    """One quota of a contract and how much of it is used."""

    resource: str
    limit: int
    used: int


def quota_use(site: Site, iaas: Iaas) -> list[QuotaUse]:
    """Count what an IaaS uses over the federation, as far as this site knows."""
    usage = site.index.usage(iaas.iaas_id)
    quota = iaas.contract.quota
    return [
        QuotaUse(resource="VMs", limit=quota.vm_count, used=usage.vm_count),
        QuotaUse(resource="vCPUs", limit=quota.vcpu_count, used=usage.vcpu_count),
        QuotaUse(resource="MiB of memory", limit=quota.memory_mib, used=usage.memory_mib),
        QuotaUse(resource="bytes of volumes", limit=quota.volume_bytes, used=usage.volume_bytes),
        QuotaUse(resource="public addresses", limit=quota.address_count, used=usage.address_count),
    ]


def require_quota(
    site: Site, iaas: Iaas, *, asked: tuple[int, int, int, int], address_count: int = 0
) -> None:
    """Raise QuotaExceeded unless (VMs, vCPUs, MiB, volume bytes) more fit in the contract."""
    for use, more in zip(quota_use(site, iaas), (*asked, address_count), strict=True):
        if more and use.used + more > use.limit:
            raise QuotaExceeded(use.resource, limit=use.limit, used=use.used, asked=more)


async def show_quota(site: Site, _principal: Principal, body: NameIaas) -> list[QuotaUse]:
    """Show what is used of a contract's quotas."""
    return quota_use(site, site.index.iaas_named(body.iaas))


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    table.add(
        Operation(
            name="iaas.create",
            verb="POST",
            path="/v1/iaas",
            body=CreateIaas,
            result=Shown[Iaas],
            action="iaas.create",
            summary="Build an IaaS under a contract",
            run=create_iaas,
            scope=federation_scope,
            home=anywhere,
            status=201,
        )
    )
    table.add(
        Operation(
            name="iaas.list",
            verb="GET",
            path="/v1/iaas",
            body=ListIaas,
            result=list[Shown[Iaas]],
            action="federation.read",
            summary="List the IaaSes that the caller may see",
            run=list_iaas,
            scope=any_scope,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="iaas.show",
            verb="GET",
            path="/v1/iaas/{iaas}",
            body=NameIaas,
            result=Shown[Iaas],
            action="iaas.read",
            summary="Show an IaaS and its contract",
            run=show_iaas,
            scope=iaas_scope,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="iaas.delete",
            verb="DELETE",
            path="/v1/iaas/{iaas}",
            body=NameIaas,
            result=type(None),
            action="iaas.delete",
            summary="Take an empty IaaS down",
            run=delete_iaas,
            scope=iaas_scope,
            home=iaas_home,
        )
    )
    table.add(
        Operation(
            name="iaas.quota",
            verb="GET",
            path="/v1/iaas/{iaas}/quota",
            body=NameIaas,
            result=list[QuotaUse],
            action="iaas.read",
            summary="Show what is used of the contract's quotas",
            run=show_quota,
            scope=iaas_scope,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="segment.create",
            verb="POST",
            path="/v1/iaas/{iaas}/segments",
            body=CreateSegment,
            result=Shown[Segment],
            action="segment.write",
            summary="Make a layer-2 network",
            run=create_segment,
            scope=iaas_scope,
            home=anywhere,
            status=201,
        )
    )
    table.add(
        Operation(
            name="segment.list",
            verb="GET",
            path="/v1/iaas/{iaas}/segments",
            body=NameIaas,
            result=list[Shown[Segment]],
            action="segment.read",
            summary="List the layer-2 networks of an IaaS",
            run=list_segments,
            scope=iaas_scope,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="segment.delete",
            verb="DELETE",
            path="/v1/iaas/{iaas}/segments/{segment}",
            body=NameSegment,
            result=type(None),
            action="segment.write",
            summary="Delete a layer-2 network in which no VM is",
            run=delete_segment,
            scope=iaas_scope,
            home=segment_home,
        )
    )
    table.add(
        Operation(
            name="port.list",
            verb="GET",
            path="/v1/iaas/{iaas}/ports",
            body=NameIaas,
            result=list[Shown[Port]],
            action="port.read",
            summary="List the ports of an IaaS",
            run=list_ports,
            scope=iaas_scope,
            home=anywhere,
        )
    )
