"""`nuage simulate` from end to end: tables, CSV and plots, the same seed the same bytes."""

import re
from io import StringIO
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from rich.progress import Progress

from nuage.cli.session import Session
from nuage.cli.simulate import simulate_group, teller
from nuage.errors import InvalidRequest
from nuage.placement.policies import PolicyBook


def simulate(*arguments: object) -> Result:
    result = CliRunner().invoke(simulate_group, [str(a) for a in arguments], obj=Session())
    assert result.exception is None, result.output
    return result


def write_day(folder: Path) -> Path:
    """Write a folder of 24 small traces, as PlanetLab's are."""
    prng = Random(1)
    folder.mkdir()
    for number in range(24):
        level = prng.randrange(5, 40)
        lines = [str(min(100, max(0, level + prng.randrange(-5, 30)))) for _ in range(288)]
        (folder / f"host{number:02}").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_the_same_seed_gives_the_same_files(tmp_path: Path, kind: str) -> None:
    written = []
    for turn in ("one", "two"):
        csv, plot = tmp_path / f"{turn}.csv", tmp_path / f"{turn}.{kind}"
        shown = simulate(
            "fleet", "--nodes", 24, "--hours", 30, "--seed", 5, "--csv", csv, "--plot", plot
        )
        assert "total" in shown.output
        written.append((csv.read_bytes(), plot.read_bytes()))
    assert written[0] == written[1]
    assert written[0][1].startswith(b"<?xml" if kind == "svg" else b"\x89PNG")


def test_a_load_that_was_exported_is_run_again(tmp_path: Path) -> None:
    load, one, two = (tmp_path / name for name in ("load.csv", "one.csv", "two.csv"))
    simulate("fleet", "--nodes", 24, "--hours", 30, "--export", load, "--csv", one)
    simulate("fleet", "--nodes", 24, "--hours", 30, "--trace", load, "--csv", two)
    assert one.read_bytes() == two.read_bytes()


def test_the_planner_is_compared_with_nobody_planning(tmp_path: Path) -> None:
    csv = tmp_path / "planned.csv"
    shown = simulate(
        "fleet", "--nodes", 24, "--hours", 9, "--planner", "--every", 3, "--against", "no-planner",
        "--csv", csv,
    )  # fmt: skip
    assert "power against no-planner: meter" in shown.output
    assert csv.read_text().splitlines()[0].endswith("boots,migrations,switching_kwh")


@pytest.mark.parametrize("rules", ["--compat", "--honest"])
def test_a_planetlab_folder_is_run_and_drawn(tmp_path: Path, rules: str) -> None:
    day = write_day(tmp_path / "day")
    written = []
    for turn in ("one", "two"):
        csv, plot = tmp_path / f"{turn}.csv", tmp_path / f"{turn}.svg"
        shown = simulate("planetlab", day, rules, "--csv", csv, "--plot", plot)
        assert "SLAV" in shown.output
        written.append((csv.read_bytes(), plot.read_bytes()))
    assert written[0] == written[1]
    assert ("memory bound" in shown.output) == (rules == "--honest")


@pytest.mark.parametrize("policy", sorted(PolicyBook()))
def test_each_policy_places_through_agents_and_the_same_seed_gives_the_same_bytes(
    tmp_path: Path, policy: str
) -> None:
    written = []
    for turn in ("one", "two"):
        csv = tmp_path / f"{turn}.csv"
        shown = simulate("fleet", "--nodes", 12, "--hours", 8, "--policy", policy, "--csv", csv)
        assert "placed by the product's agents" in shown.output
        written.append(csv.read_bytes())
    assert written[0] == written[1]


def test_a_policy_is_compared_with_another_and_packs_where_that_one_spreads() -> None:
    shown = simulate(
        "fleet", "--nodes", 24, "--hours", 9, "--policy", "pack", "--against", "spread",
        "--planner", "--every", 4,
    )  # fmt: skip
    change = re.search(r"pack against spread: meter (-?[\d.]+|\+[\d.]+) %", shown.output)
    assert change is not None
    assert float(change[1]) < -5.0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--policy", "grene"), "no placement policy 'grene'"),
        (("--policy", "green", "--against", "none"), "no placement policy 'none'"),
        (("--against", "green"), "no weighting 'green'"),
    ],
)
def test_what_cannot_place_is_refused_before_anything_runs(
    options: tuple[object, ...], told: str
) -> None:
    result = CliRunner().invoke(
        simulate_group, ["fleet", *(str(option) for option in options)], obj=Session()
    )
    assert isinstance(result.exception, InvalidRequest)
    assert told in str(result.exception)


def test_a_run_that_nobody_looks_at_tells_by_lines_how_far_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seconds = iter([0.0, 1.0, 11.0, 11.0, 12.0, 30.0, 30.0])
    tell = teller(Progress(console=Console(file=StringIO())), "green", 24, lambda: next(seconds))
    for passed in (0.1, 0.5, 0.75, 24):
        tell(passed)
    assert capsys.readouterr().err == "green: 0.50 of 24 hours\ngreen: 24.00 of 24 hours\n"
