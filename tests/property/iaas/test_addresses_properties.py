"""No two sites ever give the same address, and a site never gives one twice."""

from ipaddress import IPv4Interface, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.iaas.iaas_makers import segment

from nuage.errors import InvalidRequest, QuotaExceeded
from nuage.iaas.addresses import PREFIX_LENGTH_MAX, free_address, mac_of, parse_network
from nuage.model.infrastructure import SITES_MAX


@given(
    prefix=st.integers(20, PREFIX_LENGTH_MAX),
    asks=st.lists(st.integers(0, SITES_MAX - 1), max_size=80),
)
def test_addresses_are_given_once_and_lie_in_the_segment(prefix: int, asks: list[int]) -> None:
    network = IPv4Network(f"10.0.0.0/{prefix}")
    tenant = segment(cidr=str(network))
    used: dict[int, list[str]] = {number: [] for number in range(SITES_MAX)}
    for number in asks:
        try:
            # A site knows its own ports for certain, those of others perhaps not yet.
            given_ = free_address(tenant, number, used[number])
        except QuotaExceeded:
            assert len(used[number]) >= network.num_addresses // SITES_MAX - 3
            continue
        used[number].append(given_)
    everything = [address for given_ in used.values() for address in given_]
    assert len(set(everything)) == len(everything)
    for text in everything:
        interface = IPv4Interface(text)
        assert interface.ip in network
        assert interface.network == network
        assert str(interface.ip) != tenant.gateway
        assert interface.ip not in (network.network_address, network.broadcast_address)


def test_a_full_slice_says_how_large_it_is() -> None:
    tenant = segment(cidr="10.0.0.0/26")
    used: list[str] = []
    for _ in range(4):
        used.append(free_address(tenant, 3, used))
    with pytest.raises(QuotaExceeded) as refused:
        free_address(tenant, 3, used)
    assert refused.value.limit == 4


@pytest.mark.parametrize(
    "cidr", ["10.0.0.0/27", "10.0.0.1/20", "fd00::/64", "x", "", "10.0.0.0/33"]
)
def test_a_network_that_will_not_do_is_refused_by_field(cidr: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_network(cidr)
    assert refused.value.field == "cidr"


def test_macs_are_local_unicast_and_stable() -> None:
    macs = {mac_of(f"port-{number}") for number in range(500)}
    assert len(macs) == 500
    assert all(int(mac[:2], 16) & 3 == 2 for mac in macs)
    assert mac_of("port-1") == mac_of("port-1")
