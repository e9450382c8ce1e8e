"""Namespaces and a BPF file system for the kernel plane."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from tests.system.bpf.bpf_netns import Chain, Namespaces

from nuage.network.kernel_plane import why_not


@cache
def refusal() -> str | None:
    """Return why these tests cannot run here, None when they can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [tool for tool in ("ip", "ethtool", "ping") if shutil.which(tool) is None]
    return f"needs {', '.join(missing)}" if missing else why_not()


@pytest.fixture(autouse=True)
def _needs_bpf() -> None:
    reason = refusal()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    """A BPF file system of our own."""
    subprocess.run(["mount", "-t", "bpf", "bpf", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.fixture
def prefix() -> str:
    return f"nqb{os.getpid() % 10000}"


@pytest.fixture
def chain(prefix: str, pins: Path) -> Iterator[Chain]:
    made: Chain | None = None
    try:
        made = Chain(prefix, pins)
        yield made
    finally:
        if made is not None:
            made.remove()


@pytest.fixture
def net(prefix: str) -> Iterator[Namespaces]:
    made = Namespaces(prefix)
    yield made
    made.remove()
