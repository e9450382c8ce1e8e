"""Which cables, addresses and routes a lab gets."""

import re

import pytest

from nuage.lab import addresses as at
from nuage.lab.cabling import Cut, cut_ruleset, fabric_plan, far_ends, lines_without, node_plan
from nuage.lab.description import (
    DEFAULT_DESCRIPTION,
    LabDescription,
    load_description,
    parse_description,
)

LAB = load_description(DEFAULT_DESCRIPTION)
TEXT = DEFAULT_DESCRIPTION.with_name("duo.toml").read_text(encoding="utf-8")
TWIN = parse_description(TEXT.replace('edges = ["node"]', 'edges = ["node", "node"]', 1))
IFNAMSIZ_CHARS = 15


@pytest.mark.parametrize("lab", [LAB, TWIN], ids=["france", "two edges"])
def test_interface_names_fit_the_kernel_and_no_address_is_used_twice(lab: LabDescription) -> None:
    plans = [fabric_plan(lab), *(node_plan(lab, node) for node in lab.nodes())]
    lines = [line for plan in plans for lines in plan.ip_lines.values() for line in lines]
    cables = [line for plan in plans for line in plan.cables]
    names = re.findall(r"name (\S+)", "\n".join(cables + lines))
    assert names
    assert all(len(name) <= IFNAMSIZ_CHARS for name in names)
    added = re.findall(r"addr (?:add|replace) ([0-9.]+)/", "\n".join(lines))
    assert len(added) == len(set(added))
    macs = re.findall(r"address (02:[0-9a-f:]+)", "\n".join(cables + lines))
    assert len(macs) == len(set(macs))


def test_every_cable_ends_in_a_namespace_of_the_lab() -> None:
    plan = fabric_plan(LAB)
    known = set(plan.namespaces)
    for node in LAB.nodes():
        known |= set(node_plan(LAB, node).namespaces)
    prefix = at.namespace_prefix(LAB.name)
    for node in LAB.nodes():
        for cable in node_plan(LAB, node).cables:
            ends = re.findall(r"netns (\S+)", cable)
            assert len(ends) == 2
            assert set(ends) <= known
            assert all(end.startswith(prefix) for end in ends)


def test_an_edge_has_a_line_to_each_provider_and_shapes_it() -> None:
    edge = LAB.node("lyon-edge1")
    plan = node_plan(LAB, edge)
    namespace = at.namespace(LAB.name, edge.name)
    assert namespace in plan.forwarding
    assert sum("wan" in cable for cable in plan.cables) == len(LAB.providers)
    assert sum("200mbit" in line for line in plan.tc_lines[namespace]) == len(LAB.providers)


def test_of_two_edges_the_switch_sends_to_the_first_that_has_power() -> None:
    edges = TWIN.edges("marne")
    switch = at.namespace(TWIN.name, at.switch_name("marne"))
    for number, edge in enumerate(edges, start=1):
        (way,) = [line for line in node_plan(TWIN, edge).ip_lines[switch] if "default" in line]
        assert f"via 10.2.1.{number} dev br0 metric {number}" in way
        assert lines_without(TWIN, edge) == {switch: [f"route flush table 60 via 10.2.1.{number}"]}
    node = TWIN.node("marne-v1")
    lines = node_plan(TWIN, node).ip_lines[at.namespace(TWIN.name, node.name)]
    assert "route replace default via 10.2.1.254" in lines
    assert lines_without(TWIN, TWIN.node("lyon-edge1")) == {}


def test_a_provider_s_lines_may_be_narrower_than_the_rack() -> None:
    lab = parse_description(TEXT.replace("wan_mbit", "wan_mtu_bytes = 1492\nwan_mbit", 1))
    rack, *lines = node_plan(lab, lab.node("lyon-edge1")).cables
    assert rack.count("mtu 1600") == 2
    assert [line.count("mtu 1492") for line in lines] == [2, 2]


def test_a_cut_of_a_site_is_of_all_its_edges_and_each_has_a_port_of_its_own() -> None:
    assert cut_ruleset(TWIN, 1, frozenset({Cut("marne")})).count('"s1e2" drop') == 4
    assert "10.2.245.6" in cut_ruleset(TWIN, 1, frozenset({Cut("marne", "lyon")}))
    ports = [set(far_ends(TWIN, edge).values()) for edge in TWIN.edges("marne")]
    assert ports == [{"p1", "s1"}, {"p2", "s1e2"}]


def test_a_cut_swallows_in_all_directions_at_its_provider_only() -> None:
    cuts = frozenset({Cut("lyon", provider=1)})
    assert cut_ruleset(LAB, 1, cuts).count('"s2" drop') == 4
    assert "drop" not in cut_ruleset(LAB, 2, cuts)


def test_a_cut_pair_leaves_the_others_alone() -> None:
    rules = cut_ruleset(LAB, 1, frozenset({Cut("lyon", "marne")}))
    assert "10.1.1.0/24" in rules
    assert "10.1.2.0/24" in rules
    assert "10.1.3.0/24" not in rules
    assert "iifname" not in rules


def test_a_dead_line_needs_no_rule() -> None:
    assert "drop" not in cut_ruleset(LAB, 1, frozenset({Cut("lyon", how="carrier")}))


def test_a_cut_is_told_in_words() -> None:
    assert Cut("lyon").words() == "all lines of lyon silently swallowing"
    assert Cut("lyon", provider=2, how="carrier").words() == "line 2 of lyon dead"
