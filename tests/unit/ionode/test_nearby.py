"""From where a node takes iSCSI in clear."""

from pathlib import Path

from nuage.ionode.nearby import Nearby, networks_of

TOLD = """[{}, {"ifname": "eth0", "addr_info": [
  {"family": "inet", "local": "10.71.2.120", "prefixlen": 24},
  {"family": "inet", "local": "192.168.9.1", "prefixlen": 16}]}]"""


def test_a_nodes_networks_are_those_of_its_address() -> None:
    assert networks_of(TOLD, "10.71.2.120") == ("10.71.2.0/24",)
    assert networks_of("", "10.71.2.120") == ()


async def test_what_was_heard_of_the_site_stays_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "clear-from"
    nearby = Nearby(path, ["10.9.0.0/16"])
    await nearby.open("")
    assert path.read_text() == "10.9.0.0/16\n"
    nearby.take(("10.71.3.20", "10.71.2.10"))
    assert path.read_text() == "10.71.2.10\n10.71.3.20\n10.9.0.0/16\n"
    await Nearby(path, ["10.9.0.0/16"]).open("")
    assert "10.71.3.20" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o644
