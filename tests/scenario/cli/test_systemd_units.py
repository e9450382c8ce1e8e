"""The units that `make units` writes start this tree's daemons, and systemd takes them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nuage.cli.main import main

ROOT = Path(__file__).parents[3]
ROLES = ("controller", "vnode", "ionode", "edge")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    subprocess.run([ROOT / "tools/units", tmp_path], check=True, stdout=subprocess.DEVNULL)
    template = tmp_path / "nuage@.service"
    for role in ROLES:
        (tmp_path / f"nuage@{role}.service").write_text(template.read_text())
    return tmp_path


def test_each_unit_starts_a_daemon_that_the_command_line_has(units: Path) -> None:
    started = set()
    for unit in units.glob("*.service"):
        role = re.fullmatch(r"nuage@(\w+)\.service", unit.name)
        found = re.search(r"^ExecStart=(\S+) (\S+) --config \S+$", unit.read_text(), re.MULTILINE)
        assert found, unit.name
        assert Path(found[1]).parent.parent == ROOT / ".venv"
        if role or found[2] != "%i":
            started.add(found[2].replace("%i", role[1] if role else ""))
    assert started == {*ROLES, "quorum-member"}
    assert started <= set(main.commands)


def test_an_agents_end_leaves_what_it_started(units: Path) -> None:
    assert "KillMode=process" in (units / "nuage@vnode.service").read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="missing: systemd")
@pytest.mark.parametrize("unit", ["nuage-quorum-member", *(f"nuage@{role}" for role in ROLES)])
def test_systemd_finds_no_fault(units: Path, unit: str) -> None:
    verified = subprocess.run(
        ["systemd-analyze", "verify", units / f"{unit}.service"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert str(units) not in verified.stderr, verified.stderr
    assert verified.returncode == 0, verified.stderr
