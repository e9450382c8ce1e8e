"""`kill -9` at any moment loses no acknowledged write, and never half of one."""

import subprocess
import sys
import time
from pathlib import Path
from random import Random  # seeded below

import pytest

from nuage.catalogue.sqlite import SqliteCatalogue
from nuage.clock import SystemClock
from nuage.ids import SiteId

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[3]
KILLS = 30


def run_and_kill(path: Path, first: int, delay_s: float) -> list[str]:
    """Let a writer run for `delay_s` after its first acknowledgement, kill it; its lines."""
    command = [sys.executable, "-m", "tests.system.catalogue.writer_process", str(path), str(first)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        time.sleep(delay_s)  # noqa: TID251  # the point is a moment nobody chose
        process.kill()
        return lines + process.stdout.readlines()


async def test_a_kill_at_any_moment_loses_no_acknowledged_write(tmp_path: Path) -> None:
    path, prng = tmp_path / "c.db", Random(7)
    acked: dict[str, int] = {}
    for kill in range(KILLS):
        for line in run_and_kill(path, kill * 10**5, prng.uniform(0.0, 0.15)):
            words = line.split()
            if line.endswith("\n") and len(words) == 2:
                acked[f"vm-{words[0]}"] = int(words[1])
    catalogue = await SqliteCatalogue.open(path, site=SiteId("marne"), clock=SystemClock())
    stored = {record.id: record.revision for record in await catalogue.list("vm")}
    decided = {record.id for record in await catalogue.list("decision")}
    await catalogue.close()
    assert len(acked) > KILLS
    assert {id: stored.get(id) for id in acked} == acked
    assert decided == set(stored), "a unit was stored by half"
