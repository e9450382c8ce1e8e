"""Connections to a portal that a head has left, as the kernel leads them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TOOLS = ("ip", "nft", "ss")
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(any(shutil.which(t) is None for t in TOOLS), reason=f"needs {TOOLS}"),
]
PORTALS = ("10.0.0.1", "10.0.0.2", "10.0.0.3")


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"nqr{os.getpid() % 10000}"
    try:
        subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        for address in PORTALS:
            subprocess.run(["ip", "-n", name, "addr", "add", address, "dev", "lo"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


def test_what_waits_follows_a_head_that_moves_again_and_nothing_is_led_afterwards(
    namespace: str,
) -> None:
    script = Path(__file__).with_name("led_process.py")
    done = subprocess.run(
        ["ip", "netns", "exec", namespace, sys.executable, str(script)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps = [line for line in done.stdout.splitlines() if ": 10." in line]
    old, first, second = (f"{address}:21000" for address in PORTALS)
    assert steps[:4] == [
        f"before: {old}", f"moved: {first}", f"moved again: {second}", f"came back: {old}",
    ]  # fmt: skip
    assert steps[4:] == [f"given up: {first}", f"after: {old}"] * 5
