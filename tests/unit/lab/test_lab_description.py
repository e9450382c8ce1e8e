"""Reading a lab's description: what is right, and the name of what is wrong."""

from pathlib import Path

import pytest

from nuage.errors import InvalidRequest, NotFound
from nuage.lab.description import DEFAULT_DESCRIPTION, load_description, parse_description
from nuage.model.infrastructure import NodeRole

TEXT = DEFAULT_DESCRIPTION.with_name("duo.toml").read_text(encoding="utf-8")


def test_the_default_is_four_french_sites_of_six_nodes() -> None:
    lab = load_description(DEFAULT_DESCRIPTION)
    assert [site.id for site in lab.sites] == ["marne", "lyon", "rennes", "toulouse"]
    assert {site.country for site in lab.sites} == {"FR"}
    assert {site.power_capacity_watts for site in lab.sites} == {18_000.0}
    roles = [node.role for node in lab.nodes() if node.site == "marne"]
    assert roles.count(NodeRole.VNODE) == roles.count(NodeRole.IONODE) == 2
    assert roles.count(NodeRole.EDGE) == roles.count(NodeRole.CONTROLLER) == 1
    assert len({node.name for node in lab.nodes()}) == 24
    assert len(lab.pdus()) == 4


def test_a_bundled_description_is_meant_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_description(Path("duo")) == parse_description(TEXT)
    with pytest.raises(NotFound) as refused:
        load_description(Path("trio"))
    assert "duo, france, watt" in refused.value.hint
    Path("duo").write_text(TEXT.replace('name = "duo"', 'name = "own"'), encoding="utf-8")
    assert load_description(Path("duo")).name == "own"


def test_every_node_has_an_outlet_of_its_racks_pdu() -> None:
    lab = load_description(DEFAULT_DESCRIPTION)
    pdus = {(pdu.site, pdu.rack): pdu for pdu in lab.pdus()}
    for node in lab.nodes():
        assert pdus[node.site, node.rack].outlets[node.outlet - 1] == node.name
    assert all(pdu.outlets[-1] == f"{pdu.site}-switch" for pdu in pdus.values())


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("tier = 2", "tier = 5", "sites[0].tier"),
        ("tier = 2", 'tier = "two"', "sites[0].tier"),
        ("tier = 2", "teir = 2", "sites[0].teir"),
        ('name = "duo"', 'name = "Duo!"', "name"),
        ("number = 2", "number = 251", "number"),
        ('["isp1", "isp2"]', "[]", "providers"),
        ('["isp1", "isp2"]', '["isp1", "isp1"]', "providers"),
        ('password = "nuage-lab"', 'password = ""', "credentials.password"),
        ("wan_mbit = 100", "wan_mbit = -1", "links"),
        ("wan_mbit = 100", "wan_mbit = 100\nmtu_bytes = 100", "links.mtu_bytes"),
        ("wan_mbit = 100", "wan_mbit = 100\nwan_mtu_bytes = 9001", "links.wan_mtu_bytes"),
        ("cpu_count = 2", "cpu_count = 0", "hardware.node.cpu_count"),
        ("peak_watts = 150.0", "peak_watts = 10.0", "hardware.node.idle_watts"),
        ("peak_watts = 150.0", "peak_watts = 150.0\ncurve_watts = [1.0, 2.0]",
         "hardware.node.curve_watts"),
        ("boot_seconds = 0.2", "boot_seconds = -1", "hardware.node.boot_seconds"),
        ('size = "1G"', 'size = "big"', "hardware.node.disks[0].size"),
        ('class = "nvme"', 'class = "quick"', "hardware[...].disks[0].class"),
        ('id = "lyon"', 'id = "marne"', "sites[1].id"),
        ('id = "lyon"', 'id = "isp1"', "sites[1].id"),
        ('country = "FR"\nlat', 'country = "France"\nlat', "sites[0].country"),
        ('edges = ["node"]', "edges = []", "sites[0].racks"),
        ('edges = ["node"]', 'edges = ["node", "node", "node"]', "sites[0].racks"),
        ('vnodes = ["node"]', 'vnodes = ["huge"]', "sites[0].racks[0].vnodes[0]"),
        ('name = "r1"', 'name = "R 1"', "sites[0].racks[0].name"),
        ("power_capacity_watts = 18000", "power_capacity_watts = 0",
         "sites[0].power_capacity_watts"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(old: str, new: str, field: str) -> None:
    assert old in TEXT
    with pytest.raises(InvalidRequest) as caught:
        parse_description(TEXT.replace(old, new, 1))
    assert caught.value.field == field


def test_what_is_not_toml_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="TOML"):
        parse_description("name = ")


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load_description(tmp_path / "none.toml")


def test_an_unknown_node_or_site_is_answered_with_those_there_are() -> None:
    lab = parse_description(TEXT)
    with pytest.raises(NotFound) as caught:
        lab.node("marne-v9")
    assert "marne-v1" in caught.value.hint
    with pytest.raises(NotFound) as caught:
        lab.site("paris")
    assert "lyon" in caught.value.hint
