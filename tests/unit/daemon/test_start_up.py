"""What a node's processes take in at their start: a machine starts dozens of them."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["vnode", "ionode", "edge"])
def test_an_agent_starts_without_numpy(module: str) -> None:
    told = f"import sys, nuage.daemon.{module}; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 0


@pytest.mark.parametrize("module", ["vnode", "edge"])
def test_an_agent_starts_without_what_only_a_controller_needs(module: str) -> None:
    """Its node is without it meanwhile."""
    rooms = ("catalogue", "quorum", "etcd", "placement", "storage", "iaas", "api")
    told = f"import sys, nuage.daemon.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True)
    taken = {f"nuage.{room}" for room in rooms} & set(done.stdout.split())
    assert taken == set()
