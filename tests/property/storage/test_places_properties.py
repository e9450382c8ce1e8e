"""Whatever the sites and nodes: the contract is never violated, and a refusal names its rule."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.unit.iaas.iaas_makers import datacenter

from nuage.errors import NoCandidate
from nuage.ids import NodeId, SiteId
from nuage.model.contract import Contract, refusal_of_site
from nuage.model.infrastructure import Datacenter
from nuage.model.status import FREE_SHARE_MIN
from nuage.model.volume import ReplicaPlace
from nuage.storage.places import (
    PROMISED,
    Bound,
    IonodeSpace,
    choose_places,
    distance_km,
    rank_places,
)
from nuage.units import GIB, MIB

RATIOS = (0.5, 1.0, 4.0)
NAMES = ("lyon", "marne", "nantes", "rennes", "zurich")


BOUNDS = (
    (),
    *(
        (Bound(disk_class=None, total_bytes=GIB, largest_bytes=GIB // 2, ratio=ratio),)
        for ratio in RATIOS
    ),
)


@st.composite
def federations(draw: st.DrawFn) -> tuple[list[Datacenter], list[IonodeSpace]]:
    sites = [
        datacenter(
            name, number=number, tier=draw(st.integers(1, 4)),
            country=draw(st.sampled_from(("FR", "CH"))),
            operator=draw(st.sampled_from(("FR", "US"))),
            latitude_deg=draw(st.floats(40, 55)), longitude_deg=draw(st.floats(-5, 10)),
        )
        for number, name in enumerate(NAMES[: draw(st.integers(1, 5))])
    ]  # fmt: skip
    nodes = [
        IonodeSpace(
            node_id=NodeId(f"{site.site_id}-{number}"), site_id=site.site_id, total_bytes=GIB,
            free_bytes=draw(st.sampled_from((0, 100 * MIB, GIB))), is_usable=draw(st.booleans()),
            bounds=draw(st.sampled_from(BOUNDS)),
        )
        for site in sites
        for number in range(draw(st.integers(0, 3)))
    ]  # fmt: skip
    return sites, nodes


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    copies = draw(st.integers(1, 3))
    return Contract(
        data_countries=draw(st.sampled_from(((), ("FR",), ("CH",)))),
        operator_countries=draw(st.sampled_from(((), ("FR",)))),
        sites=draw(st.sampled_from(((), (SiteId("lyon"), SiteId("marne"))))),
        tier_min=draw(st.integers(1, 3)),
        copies=copies,
        copy_sites=draw(st.integers(1, copies)),
    )


def may_promise(node: IonodeSpace, size_bytes: int, promised_bytes: int) -> bool:
    return all(
        promised_bytes + size_bytes <= bound.total_bytes * bound.ratio
        and size_bytes <= bound.largest_bytes * bound.ratio
        for bound in node.bounds
    )


def places_for(
    contract: Contract,
    sites: list[Datacenter],
    nodes: list[IonodeSpace],
    size_bytes: int,
    promised: dict[NodeId, int],
) -> tuple[ReplicaPlace, ...]:
    near = sites[0].site_id
    return choose_places(
        contract, rank_places(contract, near=near, sites=sites, nodes=nodes),
        size_bytes=size_bytes, near=near,
        promised_on=lambda node_id, _class: promised.get(node_id, 0),
    )  # fmt: skip


def could_place(
    contract: Contract,
    sites: list[Datacenter],
    nodes: list[IonodeSpace],
    size_bytes: int,
    promised: dict[NodeId, int],
) -> bool:
    """Tell whether the contract can be met with a head at the first site."""
    by_site = {site.site_id: site for site in sites}
    able = [
        node
        for node in nodes
        if node.is_usable
        and refusal_of_site(contract, by_site[node.site_id]) is None
        and node.free_bytes >= node.total_bytes * FREE_SHARE_MIN
        and may_promise(node, size_bytes, promised.get(node.node_id, 0))
    ]
    able_sites = {node.site_id for node in able}
    return (
        len(able) >= contract.copies
        and len(able_sites) >= contract.copy_sites
        and sites[0].site_id in able_sites
    )


SIZES = st.sampled_from((MIB, 80 * MIB, GIB // 2, GIB, 3 * GIB))


@given(federations(), contracts(), st.lists(SIZES, min_size=1, max_size=8))
def test_places_keep_contract_and_promise_or_the_refusal_names_each_rule(
    federation: tuple[list[Datacenter], list[IonodeSpace]],
    contract: Contract,
    sizes_bytes: list[int],
) -> None:
    """One volume after another, until nothing may be promised any more."""
    sites, nodes = federation
    by_site = {site.site_id: site for site in sites}
    space = {node.node_id: node for node in nodes}
    promised: dict[NodeId, int] = {}
    for size_bytes in sizes_bytes:
        if not could_place(contract, sites, nodes, size_bytes, promised):
            with pytest.raises(NoCandidate) as refused:
                places_for(contract, sites, nodes, size_bytes, promised)
            told = refused.value.refusals
            assert all(rule and reason for _, rule, reason in told)
            assert {who for who, _, _ in told} <= {*space, sites[0].site_id}
            is_full = any(rule == PROMISED for _, rule, _ in told)
            assert ("overcommit_ratio" in refused.value.hint) == is_full
            continue
        places = places_for(contract, sites, nodes, size_bytes, promised)
        assert len(places) == contract.copies
        assert len({place.node_id for place in places}) == contract.copies
        assert len({place.site_id for place in places}) >= contract.copy_sites
        for place in places:
            assert refusal_of_site(contract, by_site[place.site_id]) is None
            node = space[place.node_id]
            assert node.is_usable
            assert node.free_bytes >= node.total_bytes * FREE_SHARE_MIN
            assert may_promise(node, size_bytes, promised.get(place.node_id, 0))
            promised[place.node_id] = promised.get(place.node_id, 0) + size_bytes


@given(federations(), contracts())
def test_the_head_is_at_the_site_that_asks(
    federation: tuple[list[Datacenter], list[IonodeSpace]], contract: Contract
) -> None:
    """It is the volume's home, which alone hears of the head."""
    sites, nodes = federation
    if not could_place(contract, sites, nodes, MIB, {}):
        return
    places = places_for(contract, sites, nodes, MIB, {})
    assert places[0].site_id == sites[0].site_id


def test_a_site_whose_ionodes_do_not_answer_takes_no_volume() -> None:
    """Else its VM waited for ever for a head at another site, of which its home hears nothing."""
    sites = [datacenter("marne"), datacenter("lyon")]
    nodes = [
        IonodeSpace(
            node_id=NodeId("m1"), site_id=SiteId("marne"), free_bytes=GIB, total_bytes=GIB,
            is_usable=False,
        ),
        IonodeSpace(node_id=NodeId("l1"), site_id=SiteId("lyon"), free_bytes=GIB, total_bytes=GIB),
    ]  # fmt: skip
    with pytest.raises(NoCandidate, match="no IO-node of marne") as refused:
        places_for(Contract(), sites, nodes, 1, {})
    assert [(who, rule) for who, rule, _ in refused.value.refusals] == [("m1", "not-connected")]
    with pytest.raises(NoCandidate, match="no IO-node of marne") as refused:
        places_for(Contract(), sites, nodes[1:], 1, {})
    assert [(who, rule) for who, rule, _ in refused.value.refusals] == [("marne", "head")]


def test_a_refusal_tells_the_rule_of_each_node() -> None:
    sites = [datacenter("marne"), datacenter("zurich", country="CH")]
    nodes = [
        IonodeSpace(node_id=NodeId("m1"), site_id=SiteId("marne"), free_bytes=0, total_bytes=GIB),
        IonodeSpace(
            node_id=NodeId("m2"), site_id=SiteId("marne"), free_bytes=GIB, total_bytes=GIB,
            is_usable=False,
        ),
        IonodeSpace(node_id=NodeId("z1"), site_id=SiteId("zurich"), free_bytes=GIB,
                    total_bytes=GIB),
    ]  # fmt: skip
    with pytest.raises(NoCandidate) as refused:
        places_for(Contract(data_countries=("FR",)), sites, nodes, 1, {})
    rules = {who: rule for who, rule, _ in refused.value.refusals}
    assert rules == {"m1": "space", "m2": "not-connected", "z1": "data_countries"}


@given(st.floats(-90, 90), st.floats(-180, 180), st.floats(-90, 90), st.floats(-180, 180))
def test_distances_are_those_of_a_sphere(a: float, b: float, c: float, d: float) -> None:
    one = datacenter("marne", latitude_deg=a, longitude_deg=b)
    other = datacenter("lyon", latitude_deg=c, longitude_deg=d)
    assert 0.0 <= distance_km(one, other) <= 20_020.0
    assert distance_km(one, other) == pytest.approx(distance_km(other, one), abs=1e-6)


@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 3))
def test_a_burst_of_volumes_spreads_over_nodes_that_are_alike(
    node_count: int, volume_count: int, copies: int
) -> None:
    """All are empty yet, so free space alone would send each to the same node."""
    contract = Contract(copies=copies, copy_sites=1)
    sites = [datacenter("lyon"), datacenter("marne", number=1, latitude_deg=48.8)]
    bounds = (Bound(disk_class=None, total_bytes=GIB, largest_bytes=GIB, ratio=100.0),)
    nodes = [
        IonodeSpace(
            node_id=NodeId(f"{site.site_id}-{number}"), site_id=site.site_id,
            total_bytes=GIB, free_bytes=GIB, bounds=bounds,
        )
        for site in sites
        for number in range(node_count)
    ]  # fmt: skip
    assume(copies <= len(nodes))
    promised = {node.node_id: 0 for node in nodes}
    for _ in range(volume_count):
        for place in places_for(contract, sites, nodes, MIB, promised):
            promised[place.node_id] += MIB
    for site in sites:
        at_site = [promised[node.node_id] for node in nodes if node.site_id == site.site_id]
        assert max(at_site) - min(at_site) <= MIB
