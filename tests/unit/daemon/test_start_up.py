"""What a node's processes take in at their start: a machine starts dozens of them."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["vnode", "ionode", "edge"])
def test_an_agent_starts_without_numpy(module: str) -> None:
    told = f"import sys, nuage.daemon.{module}; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 0
