"""The seeds of every target, and all that a fuzzer ever found, without a fuzzer."""

from pathlib import Path

import pytest
from tests.fuzz.targets import TARGETS

FOUND = Path(__file__).parent / "found"


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_and_all_that_was_ever_found_keeps_the_promises(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds():
        assert len(seed) <= target.bytes_max + 1
        target.run(seed)
    for path in sorted((FOUND / name).glob("*")):
        target.run(path.read_bytes())
