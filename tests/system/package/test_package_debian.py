"""The Debian package holds all that it runs: it founds and serves where the tree is away."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LIB = "/usr/lib/nuage"

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts take root"),
    pytest.mark.skipif(shutil.which("dpkg-shlibdeps") is None, reason="dpkg-dev is not installed"),
]

# The package's files in their places, no tree, and a network of its own.
WHERE_INSTALLED = """
mount -t overlay overlay -o lowerdir="$1"/usr/lib:/usr/lib /usr/lib
mount -t tmpfs none "$2"
ip link set lo up
cd /
shift 2
exec "$@"
"""

EVERY_MODULE = """
import importlib, pkgutil, nuage
found = [module.name for module in pkgutil.walk_packages(nuage.__path__, "nuage.")]
for name in found:
    if not name.endswith(("__main__", "simulation.consolidation")):  # that one needs the solver
        importlib.import_module(name)
print(len(found), nuage.__file__)
"""

FOUND_AND_SERVE = """
set -e
cd "$1"
nuage federation found cloud --config controller.toml >secret
nuage controller --config controller.toml >log 2>&1 &
trap 'kill $!; wait $!' EXIT
for _ in $(seq 100); do [ -S api.sock ] && break; sleep 0.2; done
nuage invite-node marne-v1 --role vnode --config controller.toml
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The package's files, as dpkg lays them."""
    where = tmp_path_factory.mktemp("package")
    settings = {**os.environ, "COMPRESSION": "none", "DIST": str(where)}
    subprocess.run([ROOT / "tools/package"], check=True, env=settings, timeout=300)
    (package,) = where.glob("nuage_*.deb")
    subprocess.run(["dpkg-deb", "--raw-extract", package, where / "root"], check=True)
    package.unlink()
    yield where / "root"
    shutil.rmtree(where)


def run(installed: Path, *command: str | Path) -> str:
    """What a command prints where the package is installed and the tree is not there."""
    inside = (
        "unshare",
        "--mount",
        "--net",
        "--propagation",
        "private",
        "sh",
        "-ec",
        WHERE_INSTALLED,
    )
    path = {**os.environ, "PATH": f"{LIB}/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(
        [*inside, "sh", installed, ROOT, *command],
        check=False, capture_output=True, text=True, timeout=90, env=path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(300)
def test_each_module_finds_what_it_imports(installed: Path) -> None:
    count, file = run(installed, f"{LIB}/bin/python3", "-c", EVERY_MODULE).split()
    assert int(count) > 300
    assert file.startswith(f"{LIB}/lib/")


def test_what_only_development_needs_is_not_in_it(installed: Path) -> None:
    packages = {path.name for path in installed.glob("usr/lib/nuage/lib/python3*/site-packages/*")}
    assert {"nuage", "aiohttp", "numpy"} <= packages
    assert not {"pytest", "mypy", "ruff", "hypothesis", "pip"} & packages


def test_what_takes_the_solver_says_that_it_is_not_in_it(installed: Path) -> None:
    packages = {path.name for path in installed.glob("usr/lib/nuage/lib/python3*/site-packages/*")}
    assert not {"ortools", "pandas"} & packages
    told = run(installed, "sh", "-c", "nuage simulate planetlab /tmp 2>&1 || true")
    assert "needs ortools, which is not installed here" in told


def test_units_start_programs_that_are_in_it(installed: Path) -> None:
    units = list(installed.glob("lib/systemd/system/*.service"))
    programs = [re.search(r"^ExecStart=(\S+)", unit.read_text(), re.M) for unit in units]
    assert len(units) == 2
    for program in programs:
        assert program is not None
        assert os.access(installed / program[1].lstrip("/"), os.X_OK)
    assert (installed / "usr/bin/nuage").readlink() == Path(f"{LIB}/bin/nuage")


def test_a_federation_is_founded_and_served(installed: Path, tmp_path: Path) -> None:
    example = (installed / "usr/share/doc/nuage/examples/controller.toml").read_text()
    text = example[: example.index("[quorum]")].replace("203.0.113.10:", "127.0.0.1:")
    text = text.replace("/var/lib/nuage", str(tmp_path)).replace("/run/nuage", str(tmp_path))
    (tmp_path / "controller.toml").write_text(text)
    token = run(installed, "bash", "-c", FOUND_AND_SERVE, "bash", tmp_path)
    assert len(token.split()) == 1
