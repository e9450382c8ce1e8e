"""From where a node takes iSCSI in clear."""

from pathlib import Path

from nuage.ionode.nearby import Nearby


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
