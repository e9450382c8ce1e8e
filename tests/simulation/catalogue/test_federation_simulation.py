"""Thousands of unlucky minutes of a federation.

NUAGE_SIM_SEEDS=5000 python -m pytest tests/simulation/catalogue     more seeds
NUAGE_SIM_SEED=123 python -m pytest tests/simulation/catalogue       one again
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.simulation.catalogue.federation_world import World
from tests.simulation.many_seeds import SHARE_TIMEOUT_S, Shares, begun

from nuage.quorum.model import LeaseTiming

SEEDS_FILE = Path(__file__).parents[1] / "seeds.txt"
SEEDS_PER_TEST = 40
SEED_COUNT = int(os.environ.get("NUAGE_SIM_SEEDS", "2000"))
ONE_SEED = os.environ.get("NUAGE_SIM_SEED", "")


def run_seed(seed: int) -> World:
    world = World(seed)
    try:
        world.run()
    except AssertionError as error:
        replay = f"NUAGE_SIM_SEED={seed} python -m pytest tests/simulation/catalogue"
        raise AssertionError(f"{error} at {world.time_s:.3f} s; again: {replay}") from error
    return world


def known_seeds() -> list[int]:
    """Return the seeds that once failed: lines `catalogue SEED # what it was`."""
    lines = SEEDS_FILE.read_text().splitlines() if SEEDS_FILE.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith("catalogue ")]


@pytest.mark.skipif(bool(ONE_SEED), reason="one seed was asked for")
@pytest.mark.parametrize("seed", known_seeds())
def test_a_seed_that_once_failed_holds(seed: int) -> None:
    run_seed(seed)


@pytest.fixture(scope="module")
def shares() -> Iterator[Shares]:
    with begun(run_seed, range(SEED_COUNT), SEEDS_PER_TEST) as running:
        yield running


@pytest.mark.skipif(bool(ONE_SEED), reason="one seed was asked for")
@pytest.mark.timeout(SHARE_TIMEOUT_S)
@pytest.mark.parametrize("first", range(0, SEED_COUNT, SEEDS_PER_TEST))
def test_no_vm_runs_twice_replicas_converge_and_nothing_is_deleted(
    shares: Shares, first: int
) -> None:
    assert shares[first].result() == {}


@pytest.mark.skipif(not ONE_SEED, reason="no seed was asked for")
def test_the_seed_that_was_asked_for_holds() -> None:
    run_seed(int(ONE_SEED))


def test_the_simulation_takes_over_and_refuses() -> None:
    """A simulation in which nothing happens would prove nothing."""
    worlds = [run_seed(seed) for seed in range(30)]
    assert sum(world.takeover_count for world in worlds) > 10
    refusals = [
        connection.feed.refused_count
        for world in worlds
        for site in world.sites.values()
        for connection in site.connections.values()
    ]
    assert sum(refusals) > 10


class HeldToTheLast(LeaseTiming):
    """A site that acts until the quorum's lease ends, without any margin."""

    @property
    def hold_s(self) -> float:
        return self.ttl_s


def test_without_its_margin_a_lease_lets_a_vm_run_twice() -> None:
    """The checker sees what the margin prevents."""
    violations = 0
    for seed in range(60):
        try:
            World(seed, timing=HeldToTheLast()).run()
        except AssertionError as error:
            violations += "starts at" in str(error)
    assert violations > 0
