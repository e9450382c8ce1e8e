"""What bad data looks like to who asks: from the keeper's record to `nuage energy show`."""

from dataclasses import replace
from pathlib import Path

import msgspec
from click.testing import CliRunner
from tests.unit.daemon.test_energy_keeper import MARNE, NODES, World

from nuage.api.client import Client, Json
from nuage.cli.energy import show_energy
from nuage.cli.session import Session
from nuage.daemon.energy_pdus import PduSeen
from nuage.model.desired import VnodeReport
from nuage.model.energy import SiteEnergy

NIGHT_ONLY = """
name = "night only"
[[versions]]
valid_from = 2020-01-01
[[versions.rules]]
eur_per_mwh = 100.0
hours = [22, 6]
"""


class OneSite(Client):
    """Answers with one site's record, as the API would."""

    def __init__(self, record: SiteEnergy) -> None:
        self.record = record

    def call(self, verb: str, path: str, body: object = None) -> Json:
        assert (verb, path, body) == ("GET", "/v1/energy", None)
        answer: Json = msgspec.json.decode(
            msgspec.json.encode([{"value": self.record, "age_s": 0.0}])
        )
        return answer


async def test_what_is_wrong_with_the_data_is_shown_with_the_rule_that_says_so(
    tmp_path: Path,
) -> None:
    """Negative watts, a jump, a silent PDU, and an hour that the tariff leaves out."""
    world = World(tmp_path)
    await world.fill()
    (tmp_path / "tariff.toml").write_text(NIGHT_ONLY)
    world.clock.time_s = 1_790_000_000.0 // 86_400 * 86_400 + 12 * 3600.0  # noon
    keeper = world.keeper

    def report(number: int, watts: float) -> None:
        vector = world.vector(
            NODES[number], power_watts=watts, power_source="bmc", power_read_s=world.clock.now_s()
        )
        seen = VnodeReport(
            node_id=NODES[number], site_id=MARNE, wish_revision=0, vms=(), estimate=vector
        )
        keeper.take_report(seen, vector)

    report(0, -40.0)
    report(1, 80.0)
    world.clock.time_s += 10.0
    report(1, 320.0)
    keeper.meters.pdus["r1"] = PduSeen("r1", failure="does not answer")
    keeper.look()
    await keeper._publish()
    record = replace(world.index.value(SiteEnergy, MARNE))
    assert record.price_eur_per_mwh is None
    shown = CliRunner().invoke(show_energy, [], obj=Session(_client=OneSite(record)))
    assert shown.exception is None, shown.output
    for told in (
        "marne: not believed: marne-v1 bmc", "(rule negative)",
        "marne: not believed: marne-v2 bmc", "(rule jump)",
        "marne: silent meter: ", "night only",
    ):  # fmt: skip
        assert told in shown.output, shown.output
    await world.tasks.close()
