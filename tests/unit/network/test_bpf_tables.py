"""Entries as map values and back: nothing is lost between the daemon's two lives."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuage.errors import Unavailable
from nuage.network import kernel_tables as tables
from nuage.network.forwarding import (
    Direction,
    EidEntry,
    FibEntry,
    FloodEntry,
    GuardEntry,
    Label,
    MacEntry,
    MapAction,
    MapCacheEntry,
    NextHop,
    Nickname,
    PolicyEntry,
    PortEntry,
    PortNumber,
    PortRole,
    Rloc,
)
from nuage.network.kernel_tables import SIZES, TRUNKS_MAX, U32, Place, Slots

macs = st.binary(min_size=6, max_size=6)
ports = st.integers(1, 65535).map(PortNumber)
labels = st.integers(1, 0xFFFFFE).map(Label)
nicknames = st.integers(1, 0xFFBF).map(Nickname)
networks = st.one_of(
    st.builds(
        lambda a, b: ip_network((a, b), strict=False),
        st.integers(0, 2**32 - 1).map(IPv4Address),
        st.integers(0, 32),
    ),
    st.builds(
        lambda a, b: ip_network((a, b), strict=False),
        st.integers(0, 2**128 - 1).map(IPv6Address),
        st.integers(0, 128),
    ),
)
entries = st.builds(
    lambda rate_bits_per_s, **more: PortEntry(
        **more, rate_bits_per_s=0 if more["role"] is PortRole.TRUNK else rate_bits_per_s
    ),
    port=ports,
    role=st.sampled_from(PortRole),
    mac=macs,
    label=labels,
    mtu_bytes=st.integers(68, 65535),
    guarded=st.booleans(),
    filtered=st.booleans(),
    rate_bits_per_s=st.integers(0, 400_000_000_000),
)
places = st.builds(
    Place, entries, st.integers(0, 2**31 - 1), st.none() | macs, st.integers(0, 63), st.booleans()
)


@given(places)
def test_a_port_comes_back_as_it_was(place: Place) -> None:
    value = tables.encode_place(place)
    assert len(value) == SIZES["ports"][1]
    assert tables.decode_place(value) == place


@given(nicknames, st.lists(st.builds(NextHop, ports, macs, macs), max_size=8), st.integers(0, 8))
def test_next_hops_and_backups_come_back_in_their_order(
    nickname: Nickname, hops: list[NextHop], equal: int
) -> None:
    slots, entry = Slots(), FibEntry(nickname, tuple(hops[:equal]), tuple(hops[equal:]))
    value = tables.encode_fib(entry, slots)
    assert len(value) == SIZES["fib"][1]
    assert tables.decode_fib(nickname, value, slots) == entry


@given(st.sets(ports, max_size=TRUNKS_MAX))
def test_a_set_of_trunks_comes_back_sorted(numbers: set[PortNumber]) -> None:
    slots = Slots()
    assert slots.ports(slots.bits(numbers)) == tuple(sorted(numbers))


def test_a_node_has_only_so_many_trunks_and_says_so() -> None:
    slots = Slots()
    numbers = [PortNumber(n) for n in range(1, TRUNKS_MAX + 1)]
    slots.bits(numbers)
    with pytest.raises(Unavailable, match="port 999 would be trunk 65"):
        slots.of(PortNumber(999))
    slots.free(numbers[1:])
    assert slots.of(PortNumber(999)) == 0


@given(labels, st.lists(ports, max_size=tables.FLOOD_MAX))
def test_a_flood_list_comes_back(label: Label, numbers: list[PortNumber]) -> None:
    entry = FloodEntry(label, tuple(numbers))
    value = tables.encode_flood(entry)
    assert len(value) == SIZES["floods"][1]
    assert tables.decode_flood(label, value) == entry


def test_too_many_ports_of_one_segment_are_refused() -> None:
    many = tuple(PortNumber(n) for n in range(1, tables.FLOOD_MAX + 2))
    with pytest.raises(Unavailable, match="513 ports here, 512 at most"):
        tables.encode_flood(FloodEntry(Label(1), many))


@given(labels, macs, nicknames)
def test_a_station_comes_back(label: Label, mac: bytes, nickname: Nickname) -> None:
    entry = MacEntry(label, mac, nickname=nickname)
    key = tables.STATION_KEY.pack(label, mac)
    assert (len(key), len(tables.encode_station(entry))) == SIZES["directory"]
    assert tables.decode_station(key, tables.encode_station(entry)) == entry


@given(ports, networks)
def test_a_guard_comes_back(port: PortNumber, network: IPv4Network | IPv6Network) -> None:
    entry = GuardEntry(port, network.network_address)
    assert tables.decode_guard(tables.guard_key(entry)) == entry


policies = st.builds(
    PolicyEntry,
    port=st.just(PortNumber(9)),
    index=st.integers(0, 255),
    direction=st.sampled_from(Direction),
    protocol=st.integers(0, 255),
    remote=st.none() | networks,
    first=st.integers(0, 65535),
    last=st.integers(0, 65535),
)


@given(st.dictionaries(st.integers(0, 255), policies, max_size=12))
def test_rules_come_back(found: dict[int, PolicyEntry]) -> None:
    rules = {rule.index: rule for rule in found.values()}
    value = tables.encode_rules(rules)
    assert len(value) == SIZES["rules"][1]
    assert {rule.index: rule for rule in tables.decode_rules(9, value)} == rules


@given(labels, networks, st.lists(st.integers(1, 2**32 - 1), max_size=8))
def test_a_mapping_comes_back(
    label: Label, prefix: IPv4Network | IPv6Network, rlocs: list[int]
) -> None:
    entry = MapCacheEntry(
        label,
        prefix,
        tuple(Rloc(str(IPv4Address(rloc)), index, 50) for index, rloc in enumerate(rlocs)),
        MapAction.SEND_MAP_REQUEST,
    )
    key = tables.eid_key(label, prefix)
    assert (len(key), len(tables.encode_map_cache(entry))) == SIZES["map_cache"]
    assert tables.decode_map_cache(key, tables.encode_map_cache(entry)) == entry


@given(labels, networks, ports, macs, st.sampled_from(["", "192.0.2.7"]))
def test_a_local_eid_comes_back(
    label: Label, prefix: IPv4Network | IPv6Network, port: PortNumber, mac: bytes, onward: str
) -> None:
    entry = EidEntry(label, prefix, port, mac, onward)
    value = tables.encode_eid(entry)
    assert tables.decode_eid(tables.eid_key(label, prefix), value) == entry


def test_an_ipv6_locator_is_refused_by_name_or_left_out_beside_another() -> None:
    prefix, six, four = ip_network("10.0.0.0/8"), Rloc("2001:db8::1"), Rloc("192.0.2.1")
    with pytest.raises(Unavailable, match="2001:db8::1 is IPv6"):
        tables.encode_map_cache(MapCacheEntry(1, prefix, (six,)))
    value = tables.encode_map_cache(MapCacheEntry(1, prefix, (six, four)))
    decoded = tables.decode_map_cache(tables.eid_key(1, prefix), value)
    assert decoded == MapCacheEntry(1, prefix, (four,))


def test_a_miss_names_the_host_in_both_families() -> None:
    for address in (IPv4Address("10.0.0.1"), IPv6Address("fd00::1")):
        key = bytearray(tables.eid_key(7, ip_network(address)))
        key[:4] = U32.pack(168)  # the programs look up with all bits set
        assert tables.decode_eid_key(bytes(key)) == (7, ip_network(address))
