"""The guide's policy, word for word, as a package that is built, installed and found."""

import asyncio
import os
import re
import sys
import zipfile
from pathlib import Path

GUIDE = Path(__file__).parents[3] / "docs" / "guide" / "policies.md"
BUILD = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
ASK = """
import numpy as np
from nuage.ids import IaasId, NodeId, RequestId, SiteId, VmId
from nuage.model.contract import Contract
from nuage.model.placement import Estimate, VmRequest
from nuage.model.vm import VmShape
from nuage.placement.columns import columns_of
from nuage.placement.policies import PolicyBook, scored

told = {"a": {}, "b": {"noise_db": 40.0}, "c": {"noise_db": 30.0}}
candidates = columns_of(
    [Estimate(node_id=NodeId(n), site_id=SiteId("s"), costs=costs) for n, costs in told.items()]
)
request = VmRequest(
    request_id=RequestId("r"), vm_id=VmId("v"), iaas_id=IaasId("i"), shape=VmShape(),
    contract=Contract(), policy="quiet",
)
print(scored(PolicyBook.load().require("quiet"), candidates, request))
"""


async def _python(code: str, *, at: Path, path: Path | None = None) -> str:
    """Run Python in a folder, with `path` before what is installed; return what it prints."""
    environment = dict(os.environ) | ({} if path is None else {"PYTHONPATH": str(path)})
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=at, env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    printed, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()
    return printed.decode().strip()


async def test_the_guide_s_policy_is_installed_as_a_package_and_asked_by_name(
    tmp_path: Path,
) -> None:
    blocks = re.findall(r"```(python|toml)\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    source = tmp_path / "quiet-policy"
    source.mkdir()
    names = {"python": "quiet_policy.py", "toml": "pyproject.toml"}
    assert [kind for kind, _ in blocks] == ["python", "toml"]
    for kind, text in blocks:
        (source / names[kind]).write_text(text)
    wheel = (await _python(BUILD, at=source)).splitlines()[-1]
    installed = tmp_path / "site-packages"
    with zipfile.ZipFile(source / "dist" / wheel) as archive:
        archive.extractall(installed)
    assert await _python(ASK, at=tmp_path, path=installed) == "[inf, 40.0, 30.0]"
