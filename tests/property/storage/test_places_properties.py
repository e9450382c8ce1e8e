"""Whatever the sites and nodes: the contract is never violated, and a refusal names its rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.iaas.iaas_makers import datacenter

from nuage.errors import NoCandidate
from nuage.ids import NodeId, SiteId
from nuage.model.contract import Contract, refusal_of_site
from nuage.model.infrastructure import Datacenter
from nuage.model.status import FREE_SHARE_MIN
from nuage.model.volume import ReplicaPlace
from nuage.storage.places import IonodeSpace, choose_places, distance_km
from nuage.units import GIB, MIB

NAMES = ("lyon", "marne", "nantes", "rennes", "zurich")


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


def could_place(
    contract: Contract, sites: list[Datacenter], nodes: list[IonodeSpace], size_bytes: int
) -> bool:
    """Tell whether the contract can be met with a head at the first site."""
    by_site = {site.site_id: site for site in sites}
    able = [
        node
        for node in nodes
        if node.is_usable
        and refusal_of_site(contract, by_site[node.site_id]) is None
        and node.free_bytes - size_bytes >= node.total_bytes * FREE_SHARE_MIN
    ]
    able_sites = {node.site_id for node in able}
    return (
        len(able) >= contract.copies
        and len(able_sites) >= contract.copy_sites
        and sites[0].site_id in able_sites
    )


@given(federations(), contracts(), st.sampled_from((0, 80 * MIB)))
def test_places_keep_the_contract_or_the_refusal_names_each_rule(
    federation: tuple[list[Datacenter], list[IonodeSpace]], contract: Contract, size_bytes: int
) -> None:
    sites, nodes = federation
    by_site = {site.site_id: site for site in sites}
    space = {node.node_id: node for node in nodes}

    def choose() -> tuple[ReplicaPlace, ...]:
        return choose_places(
            contract, size_bytes=size_bytes, near=sites[0].site_id, sites=sites, nodes=nodes
        )

    if not could_place(contract, sites, nodes, size_bytes):
        with pytest.raises(NoCandidate) as refused:
            choose()
        assert all(rule and reason for _, rule, reason in refused.value.refusals)
        assert {who for who, _, _ in refused.value.refusals} <= {*space, sites[0].site_id}
        return
    places = choose()
    assert len(places) == contract.copies
    assert len({place.node_id for place in places}) == contract.copies
    assert len({place.site_id for place in places}) >= contract.copy_sites
    for place in places:
        assert refusal_of_site(contract, by_site[place.site_id]) is None
        node = space[place.node_id]
        assert node.is_usable
        assert node.free_bytes - size_bytes >= node.total_bytes * FREE_SHARE_MIN


@given(federations(), contracts())
def test_the_head_is_at_the_site_that_asks(
    federation: tuple[list[Datacenter], list[IonodeSpace]], contract: Contract
) -> None:
    """It is the volume's home, which alone hears of the head."""
    sites, nodes = federation
    if not could_place(contract, sites, nodes, 0):
        return
    places = choose_places(contract, size_bytes=0, near=sites[0].site_id, sites=sites, nodes=nodes)
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
        choose_places(
            Contract(), size_bytes=1, near=SiteId("marne"), sites=sites, nodes=nodes
        )  # fmt: skip
    assert [(who, rule) for who, rule, _ in refused.value.refusals] == [("m1", "not-connected")]
    with pytest.raises(NoCandidate, match="no IO-node of marne") as refused:
        choose_places(
            Contract(), size_bytes=1, near=SiteId("marne"), sites=sites, nodes=nodes[1:]
        )  # fmt: skip
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
        choose_places(
            Contract(data_countries=("FR",)), size_bytes=1, near=SiteId("marne"), sites=sites,
            nodes=nodes,
        )  # fmt: skip
    rules = {who: rule for who, rule, _ in refused.value.refusals}
    assert rules == {"m1": "space", "m2": "not-connected", "z1": "data_countries"}


@given(st.floats(-90, 90), st.floats(-180, 180), st.floats(-90, 90), st.floats(-180, 180))
def test_distances_are_those_of_a_sphere(a: float, b: float, c: float, d: float) -> None:
    one = datacenter("marne", latitude_deg=a, longitude_deg=b)
    other = datacenter("lyon", latitude_deg=c, longitude_deg=d)
    assert 0.0 <= distance_km(one, other) <= 20_020.0
    assert distance_km(one, other) == pytest.approx(distance_km(other, one), abs=1e-6)
