"""Addresses of ports: each site gives out its own slice of a segment, so none asks another.

A segment's network is cut into `SITES_MAX` slices; the site numbered n owns slice n. The
first slice also holds the network's own address and the gateway's. A VM that moves keeps its
address: the slice says who gave it, not where it is.
"""

import hashlib
from collections.abc import Collection, Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from nuage.errors import InvalidRequest, QuotaExceeded
from nuage.model.infrastructure import SITES_MAX
from nuage.model.network import Segment

PREFIX_LENGTH_MAX = 26  # leaves four addresses a slice


def parse_network(cidr: str) -> IPv4Network:
    """Return the network of a segment.

    Raises:
        InvalidRequest: it is not IPv4 in CIDR form, or too small to give each site a slice.
    """
    try:
        network = IPv4Network(cidr)
    except ValueError as error:
        raise InvalidRequest(
            f"{cidr!r}: {error}", field="cidr", hint="for instance 10.20.0.0/20"
        ) from None
    if network.prefixlen > PREFIX_LENGTH_MAX:
        raise InvalidRequest(
            f"/{network.prefixlen} is too small: each of {SITES_MAX} sites needs a slice",
            field="cidr",
            hint=f"use /{PREFIX_LENGTH_MAX} or larger",
        )
    return network


def free_address(segment: Segment, site_number: int, used: Iterable[str]) -> str:
    """Return the lowest free address of a site's slice, as ``a.b.c.d/len``.

    Raises:
        QuotaExceeded: the site's slice of the segment is full.
    """
    taken = {int(IPv4Interface(address).ip) for address in used}
    number = free_number(segment, site_number, taken)
    return f"{IPv4Address(number)}/{IPv4Network(segment.cidr).prefixlen}"


def free_number(
    segment: Segment, site_number: int, used: Collection[int], promised: Collection[int] = ()
) -> int:
    """Return the lowest address of a site's slice that nobody has or was promised, as a number.

    Raises:
        QuotaExceeded: the site's slice of the segment is full.
    """
    network = IPv4Network(segment.cidr)
    base = int(network.network_address)
    slice_count = network.num_addresses // SITES_MAX
    first = base + site_number * slice_count
    last = min(first + slice_count, base + network.num_addresses - 1)  # never the broadcast
    kept = {base, base + 1, int(IPv4Address(segment.gateway)) if segment.gateway else base}
    for number in range(first, last):
        if number in used or number in promised or number in kept:
            continue
        return number
    raise QuotaExceeded(
        f"addresses of segment {segment.name}", limit=slice_count, used=slice_count, asked=1
    )


def mac_of(port_id: str) -> str:
    """Return the MAC address of a port: locally administered, from the hash of its id."""
    digest = hashlib.sha256(port_id.encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))
