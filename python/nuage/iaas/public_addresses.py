"""Use cases on public addresses: an operator's pools, and what IaaSes own of them (EIDs).

An address is given out by its pool's home alone, under the address itself as its id, so that two
requests at once cannot get the same. The record never moves: it names a port, and the port's VM
says where the address is now (`fabric_wishes`).
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import islice
from typing import Final, TypeVar

from nuage.errors import Conflict, InvalidRequest, NotFound, QuotaExceeded
from nuage.iaas.building import require_quota
from nuage.iaas.machines import port_of
from nuage.iaas.operations import (
    Operation,
    OperationTable,
    Run,
    Shown,
    any_scope,
    anywhere,
    iaas_scope,
)
from nuage.iaas.showing import show
from nuage.iaas.site import Site
from nuage.ids import PoolId, SiteId, new_id
from nuage.model.infrastructure import Datacenter
from nuage.model.network import AddressPool, Port, PublicAddress
from nuage.model.vm import Vm
from nuage.trust.permissions import Principal, Scope

B = TypeVar("B")
R = TypeVar("R")
PREFIX_LENGTH_MIN: Final = 16  # of IPv4: edges keep a line for each address that is in use
PREFIX6_LENGTH_MIN: Final = 16  # nobody is given more
GIVEN_MAX: Final = 65_536  # of one pool, for the same reason


# Pools ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatePool:
    """Define a prefix of public addresses; `site` gives them out."""

    name: str
    prefix: str
    site: str


@dataclass(frozen=True, slots=True)
class ListPools:
    """Ask for all pools."""


@dataclass(frozen=True, slots=True)
class NamePool:
    """Name a pool."""

    pool: str


def parse_prefix(text: str) -> IPv4Network | IPv6Network:
    """Return the prefix of a pool.

    Raises:
        InvalidRequest: it is not in CIDR form, not of addresses for single hosts, or larger than
            edges can hold.
    """
    try:
        prefix = ip_network(text)
    except ValueError as error:
        raise InvalidRequest(
            f"{text!r}: {error}", field="prefix",
            hint="for instance 198.51.100.0/24 or 2001:db8:77::/64",
        ) from None  # fmt: skip
    if prefix.is_multicast or prefix.is_link_local or prefix.is_loopback:
        raise InvalidRequest(f"{prefix} is no prefix of public addresses", field="prefix")
    bits_min = PREFIX_LENGTH_MIN if prefix.version == 4 else PREFIX6_LENGTH_MIN
    if prefix.prefixlen < bits_min:
        raise InvalidRequest(
            f"/{prefix.prefixlen} is too large", field="prefix",
            hint=f"give several pools of /{bits_min} at most",
        )  # fmt: skip
    return prefix


def overlap(one: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network) -> bool:
    """Tell whether two prefixes have an address in common."""
    return one.version == other.version and one.overlaps(other)


async def create_pool(site: Site, _principal: Principal, body: CreatePool) -> Shown[AddressPool]:
    """Define a pool; its providers must route its prefix to the federation's edges."""
    prefix = parse_prefix(body.prefix)
    for other in site.index.values(AddressPool):
        if overlap(ip_network(other.prefix), prefix):
            raise Conflict(f"{prefix} overlaps pool {other.name} ({other.prefix})")
    if site.index.is_name_taken(AddressPool, body.name):
        raise Conflict(f"there is an address pool named {body.name!r} already")
    pool = AddressPool(
        pool_id=PoolId(new_id("pool", site.entropy)), name=body.name, prefix=str(prefix)
    )
    await site.save(pool, unique_name=True)
    site.announce("address-pool", pool.pool_id, "created", f"pool {pool.name}: {prefix}")
    return show(site, pool)


async def list_pools(
    site: Site, _principal: Principal, _body: ListPools
) -> list[Shown[AddressPool]]:
    """Show all pools, by name."""
    pools = sorted(site.index.values(AddressPool), key=lambda pool: pool.name)
    return [show(site, pool) for pool in pools]


async def delete_pool(site: Site, _principal: Principal, body: NamePool) -> None:
    """Delete a pool of which nothing is given out."""
    pool = site.index.named(AddressPool, body.pool)
    held = [a.address for a in site.index.values(PublicAddress) if a.pool_id == pool.pool_id]
    if held:
        raise Conflict(f"pool {pool.name} has {', '.join(sorted(held)[:8])} given out")
    await site.delete(pool)
    site.announce("address-pool", pool.pool_id, "deleted", f"pool {pool.name} is gone")


def pool_site(site: Site, body: CreatePool) -> SiteId | None:
    """Let the site that shall give the addresses out answer."""
    return site.index.value(Datacenter, body.site).site_id


def pool_home(site: Site, body: NamePool) -> SiteId | None:
    """Let the pool's home answer."""
    return site.index.home("address-pool", site.index.named(AddressPool, body.pool).pool_id)


def pool_scope(site: Site, body: CreatePool | NamePool) -> Scope | None:
    """Ask for the role on the site that gives the addresses out."""
    home = pool_site(site, body) if isinstance(body, CreatePool) else pool_home(site, body)
    return Scope(site_id=home)


# Addresses --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateAddress:
    """Take an address out of a pool (empty: the only one) for an IaaS."""

    iaas: str
    pool: str = ""


@dataclass(frozen=True, slots=True)
class NameIaasOfAddresses:
    """Ask for an IaaS's public addresses."""

    iaas: str


@dataclass(frozen=True, slots=True)
class NameAddress:
    """Name a public address of an IaaS."""

    iaas: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachAddress:
    """Give a public address to the port of a VM."""

    iaas: str
    address: str
    vm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressView:
    """A public address, and whose it is now; empty when it is attached to nothing."""

    address: str
    pool: str
    site: SiteId
    vm: str = ""
    vm_site: str = ""
    vm_node: str = ""


def free_address(pool: AddressPool, used: set[str]) -> str:
    """Return the lowest address of a pool that nobody has; not its first and last of many.

    Raises:
        QuotaExceeded: all are given out.
    """
    count = 0
    for host in islice(ip_network(pool.prefix).hosts(), GIVEN_MAX):
        if str(host) not in used:
            return str(host)
        count += 1
    raise QuotaExceeded(f"addresses of pool {pool.name}", limit=count, used=count, asked=1)


async def create_address(
    site: Site, _principal: Principal, body: CreateAddress
) -> Shown[PublicAddress]:
    """Give an IaaS the lowest free address of a pool."""
    iaas = site.index.iaas_named(body.iaas)
    require_quota(site, iaas, asked=(0, 0, 0, 0), address_count=1)
    pool = _pool(site, body.pool)
    used = {each.address for each in site.index.values(PublicAddress)}
    while True:
        text = free_address(pool, used)
        address = PublicAddress(address=text, iaas_id=iaas.iaas_id, pool_id=pool.pool_id)
        try:
            await site.save(address)
        except Conflict:
            used.add(text)  # another request was faster; the pool's end bounds this
        else:
            break
    site.announce("address", text, "created", f"{text} belongs to {iaas.name}")
    return show(site, address)


async def list_addresses(
    site: Site, _principal: Principal, body: NameIaasOfAddresses
) -> list[AddressView]:
    """Show an IaaS's public addresses and where they are."""
    iaas = site.index.iaas_named(body.iaas)
    found = site.index.of_iaas(PublicAddress, iaas.iaas_id)
    return [_view(site, each) for each in sorted(found, key=_in_order)]


def _in_order(value: PublicAddress) -> tuple[int, int]:
    address = ip_address(value.address)
    return address.version, int(address)


def _view(site: Site, value: PublicAddress) -> AddressView:
    pool = site.index.find_value(AddressPool, value.pool_id)
    vm = holder_of(site, value)
    return AddressView(
        address=value.address,
        pool="" if pool is None else pool.name,
        site=site.index.home("address", value.address),
        vm="" if vm is None else vm.name,
        vm_site="" if vm is None else vm.site_id or "",
        vm_node="" if vm is None else vm.node_id or "",
    )


def holder_of(site: Site, value: PublicAddress) -> Vm | None:
    """Return the VM that has an address now."""
    port = None if value.port_id is None else site.index.find_value(Port, value.port_id)
    return None if port is None or port.vm_id is None else site.index.find_value(Vm, port.vm_id)


async def attach_address(
    site: Site, _principal: Principal, body: AttachAddress
) -> Shown[PublicAddress]:
    """Give an address to a VM's port; outside traffic for it goes there from now on."""
    value = _address(site, body.iaas, body.address)
    vm = site.index.named(Vm, body.vm, value.iaas_id)
    holder = holder_of(site, value)
    if holder is not None and holder.vm_id != vm.vm_id:
        raise Conflict(f"{value.address} is attached to {holder.name}", hint="detach it first")
    attached = replace(value, port_id=port_of(site, vm).port_id)
    await site.save(attached)
    site.announce("address", value.address, "attached", f"{value.address} is {vm.name}'s")
    return show(site, attached)


async def detach_address(site: Site, _principal: Principal, body: NameAddress) -> None:
    """Take an address off its port; the IaaS keeps it."""
    value = _address(site, body.iaas, body.address)
    await site.save(replace(value, port_id=None))
    site.announce("address", value.address, "detached", f"{value.address} is attached to nothing")


async def delete_address(site: Site, _principal: Principal, body: NameAddress) -> None:
    """Give an address back to its pool."""
    value = _address(site, body.iaas, body.address)
    holder = holder_of(site, value)
    if holder is not None:
        raise Conflict(f"{value.address} is attached to {holder.name}", hint="detach it first")
    await site.delete(value)
    site.announce("address", value.address, "deleted", f"{value.address} is free again")


def _pool(site: Site, name: str) -> AddressPool:
    if name:
        return site.index.named(AddressPool, name)
    pools = site.index.values(AddressPool)
    if not pools:
        raise NotFound("address-pool", "", hint="an operator defines one: `nuage pool create`")
    if len(pools) > 1:
        named = ", ".join(sorted(pool.name for pool in pools))
        raise InvalidRequest("there are several pools", field="pool", hint=f"name one: {named}")
    return pools[0]


def _address(site: Site, iaas: str, address: str) -> PublicAddress:
    owner = site.index.iaas_named(iaas)
    with suppress(ValueError):  # IPv6 may be written in many ways; it is kept in one
        address = str(ip_address(address))
    value = site.index.find_value(PublicAddress, address)
    if value is None or value.iaas_id != owner.iaas_id:
        raise NotFound("address", address, hint=f"`nuage address list` shows {owner.name}'s")
    return value


def creating_home(site: Site, body: CreateAddress) -> SiteId | None:
    """Let the pool's home give the address out."""
    return site.index.home("address-pool", _pool(site, body.pool).pool_id)


def address_home(site: Site, body: NameAddress | AttachAddress) -> SiteId | None:
    """Let the home of the address answer."""
    return site.index.home("address", _address(site, body.iaas, body.address).address)


POOLS: Final = "/v1/address-pools"
ADDRESSES: Final = "/v1/iaas/{iaas}/addresses"
ADDRESS: Final = ADDRESSES + "/{address}"


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""

    def add(
        name: str,
        verb: str,
        path: str,
        shape: tuple[type[B], type[R]],
        run: Run[B, R],
        *,
        summary: str,
        home: Callable[[Site, B], SiteId | None] = anywhere,
        scope: Callable[[Site, B], Scope | None] = iaas_scope,  # type: ignore[assignment]
        action: str = "",
    ) -> None:
        table.add(
            Operation(
                name=name,
                verb=verb,
                path=path,
                body=shape[0],
                result=shape[1],
                action=action or name,
                summary=summary,
                run=run,
                scope=scope,
                home=home,
                status=201 if verb == "POST" else 200,
                is_one_write=verb in {"PUT", "DELETE"},
            )
        )

    one, none = Shown[PublicAddress], type(None)
    add("pool.create", "POST", POOLS, (CreatePool, Shown[AddressPool]), create_pool,
        summary="Define a pool of public addresses", action="pool.write",
        home=pool_site, scope=pool_scope)  # fmt: skip
    add("pool.list", "GET", POOLS, (ListPools, list[Shown[AddressPool]]), list_pools,
        summary="List the pools of public addresses", action="pool.read",
        scope=any_scope)  # fmt: skip
    add("pool.delete", "DELETE", POOLS + "/{pool}", (NamePool, none), delete_pool,
        summary="Delete a pool of which nothing is given out", action="pool.write",
        home=pool_home, scope=pool_scope)  # fmt: skip
    add("address.create", "POST", ADDRESSES, (CreateAddress, one), create_address,
        summary="Give an IaaS a public address", home=creating_home)  # fmt: skip
    add("address.list", "GET", ADDRESSES, (NameIaasOfAddresses, list[AddressView]),
        list_addresses, summary="List public addresses and where they are",
        action="address.read")  # fmt: skip
    add("address.attach", "PUT", ADDRESS + "/port", (AttachAddress, one), attach_address,
        summary="Attach a public address to a VM's port", home=address_home)  # fmt: skip
    add("address.detach", "DELETE", ADDRESS + "/port", (NameAddress, none), detach_address,
        summary="Take a public address off its port", home=address_home,
        action="address.attach")  # fmt: skip
    add("address.delete", "DELETE", ADDRESS, (NameAddress, none), delete_address,
        summary="Give a public address back to its pool", home=address_home)  # fmt: skip
