"""Addresses of ports: each site gives out its own slice of a segment, so none asks another.

A segment's network is cut into `SITES_MAX` slices; the site numbered n owns slice n. The
first slice also holds the network's own address and the gateway's. A VM that moves keeps its
address: the slice says who gave it, not where it is.
"""

import hashlib
from collections.abc import Iterable
from ipaddress import IPv4Network

from nuage.errors import InvalidRequest, QuotaExceeded
from nuage.model.infrastructure import SITES_MAX
from nuage.model.network import Segment

PREFIX_LENGTH_MAX = 26  # leaves four addresses a slice
RESERVED_AT_START = 2  # network and gateway


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
    network = IPv4Network(segment.cidr)
    slice_count = network.num_addresses // SITES_MAX
    first = site_number * slice_count
    taken = {address.partition("/")[0] for address in used}
    taken.add(segment.gateway)
    for offset in range(first, first + slice_count):
        if offset < RESERVED_AT_START or offset == network.num_addresses - 1:
            continue
        address = str(network[offset])
        if address not in taken:
            return f"{address}/{network.prefixlen}"
    raise QuotaExceeded(
        f"addresses of segment {segment.name}", limit=slice_count, used=slice_count, asked=1
    )


def mac_of(port_id: str) -> str:
    """Return the MAC address of a port: locally administered, from the hash of its id."""
    digest = hashlib.sha256(port_id.encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))
