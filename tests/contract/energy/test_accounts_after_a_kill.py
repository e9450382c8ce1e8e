"""A real process that keeps accounts is killed while it writes; the joules add up afterwards."""

import asyncio
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from nuage.daemon.energy_metrics import EnergyMetrics
from nuage.daemon.energy_state import load_state
from nuage.energy.books import SiteBooks
from nuage.iaas.index import FederationIndex
from nuage.ids import SiteId

KILLS = 2
LOOKS = 5
# The PDU's counter: it goes on counting whoever looks, and every process sees the same.
KEEPER = """
import sys
import time
from pathlib import Path

from nuage.daemon.energy_state import KeptState, load_state, save_state
from nuage.energy.books import Costs, SiteBooks
from nuage.ids import SiteId

path, looks = Path(sys.argv[1]), int(sys.argv[2])
books = SiteBooks(SiteId("marne"), load_state(path).books)
costs = Costs(pue=1.25, price_eur_per_mwh=200.0, carbon_g_per_kwh=50.0)
while looks:
    now_s = time.monotonic()
    joules = 300.0 * now_s
    books.take_counter("PDU r1", joules / 3.6e6, now_s)
    books.settle(now_s, costs, iaas_of={}, memory_of={}, memory_mib={})
    save_state(KeptState(books=books.state), path)
    print(joules, flush=True)
    looks -= 1
"""


async def _keep(path: Path, looks: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", KEEPER, str(path), str(looks), stdout=asyncio.subprocess.PIPE
    )


async def test_accounts_add_up_to_the_meter_s_after_the_keeper_was_killed(tmp_path: Path) -> None:
    """Nothing is lost or counted twice: the bound is a millijoule a look, from rounding."""
    path = tmp_path / "energy.json"
    counted: list[float] = []
    for _ in range(KILLS):
        keeper = await _keep(path, -1)
        assert keeper.stdout is not None
        counted += [float(await keeper.stdout.readline()) for _ in range(LOOKS)]
        keeper.kill()  # SIGKILL, wherever it is in its loop
        unread, _ = await keeper.communicate()
        counted += [float(line) for line in unread.split(b"\n")[:-1]]
    last = await _keep(path, 1)
    counted.append(float((await last.communicate())[0]))
    books = SiteBooks(SiteId("marne"), load_state(path).books)
    passed_joules = counted[-1] - counted[0]
    booked_joules = sum(account.it_millijoules for account in books.ledger.state) / 1000
    assert booked_joules == pytest.approx(passed_joules, abs=0.001 * (len(counted) + 1) + 0.001)
    assert booked_joules > 0
    registry = CollectorRegistry()
    EnergyMetrics(registry).refresh(FederationIndex(SiteId("marne")), books.ledger.rows())
    (months,) = (m.samples for m in registry.collect() if m.name == "nuage_energy_it_joules")
    assert sum(sample.value for sample in months) == pytest.approx(booked_joules, abs=0.01)
    (facility,) = (m for m in registry.collect() if m.name == "nuage_energy_facility_joules")
    exported = sum(sample.value for sample in facility.samples)
    assert exported == pytest.approx(1.25 * booked_joules, rel=1e-3)
