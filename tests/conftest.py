"""Options of every test run."""

from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

TESTS: Final = Path(__file__).parent

# How long an example takes says how busy the machine is, nothing about the code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite", action="store_true", help="write the transcripts of scenarios anew"
    )
    parser.addoption("--torture", action="store_true", help="run the tests that take minutes, too")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave `tests/torture` to `make torture`."""
    if collection_path == TESTS / "torture" and not config.getoption("--torture"):
        return True
    return None


# Folders whose tests run processes, sockets or loops against the wall clock: a machine that stands
# still for seconds fails them. A second try is shown as such; what draws from a seed gets none.
REPEATED: Final = frozenset({"contract", "scenario", "system", "unit"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests against the wall clock try three times."""
    for item in items:
        if item.path.relative_to(TESTS).parts[0] in REPEATED:
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=2))
