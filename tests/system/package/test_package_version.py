"""A package of a later state of the tree is newer to apt, which passes over what it has already."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[3] / "tools/package-version"
pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("git", "dpkg")), reason="needs git and dpkg"
)
COMMIT_S = 1_700_000_000


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tools").mkdir()
    shutil.copy(TOOL, tmp_path / "tools")
    (tmp_path / "Cargo.toml").write_text('[workspace.package]\nversion = "0.2.0"\n')
    return tmp_path


def git(tree: Path, *words: str, at_s: int = COMMIT_S) -> None:
    when = {"GIT_AUTHOR_DATE": f"{at_s} +0100", "GIT_COMMITTER_DATE": f"{at_s} +0100"}
    who = ("-c", "user.name=a", "-c", "user.email=a@localhost")
    subprocess.run(
        ["git", "-C", tree, *who, *words], check=True, capture_output=True, env=os.environ | when
    )


def version_of(tree: Path) -> str:
    told = subprocess.run([tree / "tools/package-version"], check=True, capture_output=True)
    return told.stdout.decode().strip()


def is_newer(version: str, other: str) -> bool:
    return not subprocess.run(
        ["dpkg", "--compare-versions", version, "gt", other], check=False
    ).returncode


def test_each_later_state_of_the_tree_is_newer(tree: Path) -> None:
    assert version_of(tree) == "0.2.0", "no repository: what a release is unpacked to"
    git(tree, "init", "-q")
    git(tree, "add", ".")
    git(tree, "commit", "-q", "-m", "one")
    one = version_of(tree)
    assert one.startswith("0.2.0+20231114.221320.g")
    assert is_newer(one, "0.2.0")
    git(tree, "commit", "-q", "--allow-empty", "-m", "two", at_s=COMMIT_S + 3600)
    two = version_of(tree)
    assert is_newer(two, one)
    (tree / "Cargo.toml").write_text('[workspace.package]\nversion = "0.2.0"\n#\n')
    changed = version_of(tree)
    assert is_newer(changed, two)
    assert re.fullmatch(r"0\.2\.0\+\d{8}\.\d{6}", changed)
    assert is_newer("0.2.1", changed)


def test_a_release_is_called_as_its_tag(tree: Path) -> None:
    git(tree, "init", "-q")
    git(tree, "add", ".")
    git(tree, "commit", "-q", "-m", "release")
    git(tree, "tag", "v0.2.0")
    assert version_of(tree) == "0.2.0"
    git(tree, "commit", "-q", "--allow-empty", "-m", "after")
    assert version_of(tree) != "0.2.0"
