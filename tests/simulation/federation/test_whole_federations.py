"""Whole federations through unlucky minutes, each from one seed.

pytest -q tests/simulation/federation                      500 seeds and those that once failed
NUAGE_SEEDS=2000 pytest -q tests/simulation/federation     more seeds
NUAGE_SEED=123 pytest -q tests/simulation/federation       one again
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from tests.simulation.federation.unlucky_minutes import run_seed
from tests.simulation.many_seeds import SHARE_TIMEOUT_S, Shares, begun, say_nothing

SEEDS_FILE = Path(__file__).parents[1] / "seeds.txt"
SEEDS_PER_TEST = 10
SEED_COUNT = int(os.environ.get("NUAGE_SEEDS", "500"))
ONE_SEED = os.environ.get("NUAGE_SEED", "")


@pytest.fixture(autouse=True)
def _quiet() -> object:
    say_nothing()
    yield
    structlog.reset_defaults()


def known_seeds() -> list[int]:
    """Return the seeds that once failed: lines `federation SEED # what it was`."""
    lines = SEEDS_FILE.read_text().splitlines() if SEEDS_FILE.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith("federation ")]


def note_seed(seed: int, told: str) -> None:
    """Append a seed that failed, so that it is run for ever."""
    if seed not in known_seeds():
        with SEEDS_FILE.open("a") as file:
            file.write(f"federation {seed} # {told.partition(';')[0][:100]}\n")


@pytest.mark.skipif(bool(ONE_SEED), reason="one seed was asked for")
@pytest.mark.parametrize("seed", known_seeds())
def test_a_seed_of_a_federation_that_once_failed_holds(seed: int) -> None:
    run_seed(seed)


@pytest.fixture(scope="module")
def shares() -> Iterator[Shares]:
    with begun(run_seed, range(SEED_COUNT), SEEDS_PER_TEST) as running:
        yield running


@pytest.mark.skipif(bool(ONE_SEED), reason="one seed was asked for")
@pytest.mark.timeout(SHARE_TIMEOUT_S)
@pytest.mark.parametrize("first", range(0, SEED_COUNT, SEEDS_PER_TEST))
def test_what_must_always_hold_holds(shares: Shares, first: int) -> None:
    """No VM twice, none outside its contract, nothing lost, all sites of one mind at last."""
    faults = shares[first].result()
    for seed, told in faults.items():
        note_seed(seed, told)
    assert not faults


@pytest.mark.skipif(not ONE_SEED, reason="no seed was asked for")
def test_the_seed_that_was_asked_for_holds() -> None:
    run_seed(int(ONE_SEED))


def test_the_same_seed_tells_the_same_story() -> None:
    assert run_seed(3).log == run_seed(3).log


@pytest.mark.skipif(bool(ONE_SEED), reason="one seed was asked for")
def test_enough_happens_for_it_to_prove_something() -> None:
    happened: Counter[str] = Counter()
    for seed in range(100_000, 100_008):
        happened += Counter(run_seed(seed).counts)
    for what in (
        "vm placed", "vm arrived", "vm deleted", "node fenced", "site lease-lost",
        "site lease-back", "world dark", "volume promised-out",
    ):  # fmt: skip
        assert happened[what] > 0, f"no {what} in eight runs: {happened}"
