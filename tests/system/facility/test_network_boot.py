"""A bare machine boots by network from what `nuage node boot-files` writes: QEMU, iPXE, dnsmasq."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nuage.cli.main import main

ROOT = Path(__file__).resolve().parents[3]
MAC, STRANGER = "02:4e:01:01:14:00", "02:4e:01:01:14:01"
BOOTED_WITHIN_S = 120.0  # without KVM, on a busy machine
FIRST_PARTITION = 2048 * 512

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces take root"),
    pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="dnsmasq is not installed"),
]


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network of its own, with the management network's bridge and a port for a machine."""
    name = f"nuage-boot-{os.getpid()}"
    inside = ("ip", "-n", name)
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for words in (
            "link set lo up", "link add mgmt0 type bridge", "link set mgmt0 up",
            "addr add 10.0.100.10/24 dev mgmt0", "tuntap add port0 mode tap",
            "link set port0 master mgmt0 up",
        ):  # fmt: skip
            subprocess.run([*inside, *words.split()], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def readable() -> Iterator[Path]:
    """A folder that dnsmasq reads, which is nobody by then."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@contextlib.contextmanager
def running(*command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process until the block ends."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def kernel_of_the_guest(folder: Path) -> None:
    """Put the test guest's kernel and initial RAM disk into a folder."""
    build = (sys.executable, ROOT / "tools/guest/build.py")
    image = subprocess.run(build, check=True, capture_output=True, text=True).stdout.strip()
    for name in ("vmlinuz", "initrd"):
        source = f"{image}@@{FIRST_PARTITION}"
        subprocess.run(["mcopy", "-i", source, f"::{name}", folder / name], check=True)


def console_of(namespace: str, mac: str, until: bytes, within_s: float) -> bytes:
    """Return what a machine without a disk says on its serial line, until it says `until`."""
    said, ended = bytearray(), threading.Event()
    with running(
        "ip", "netns", "exec", namespace, "qemu-system-x86_64", "-nographic", "-nodefaults",
        "-m", "256", "-serial", "stdio", "-boot", "n", "-no-reboot",
        "-netdev", "tap,id=net,ifname=port0,script=no,downscript=no",
        "-device", f"virtio-net-pci,netdev=net,mac={mac}",
    ) as machine:  # fmt: skip
        assert machine.stdout is not None

        def listen() -> None:
            while piece := machine.stdout.read1(4096):  # type: ignore[union-attr]
                said.extend(piece)
                if until in said:
                    break
            ended.set()

        listener = threading.Thread(target=listen)
        listener.start()
        ended.wait(within_s)
        machine.kill()
        listener.join()
    return bytes(said)


def test_a_machine_of_the_inventory_boots_its_kernel_and_no_other_is_answered(
    namespace: str, readable: Path
) -> None:
    inventory, boot = readable / "boot.toml", readable / "boot"
    inventory.write_text(
        'interface = "mgmt0"\nsubnet = "10.0.100.0/24"\nserver = "10.0.100.10"\n'
        f'[[machines]]\nname = "v1"\nmac = "{MAC}"\naddress = "10.0.100.20"\n'
        'kernel_url = "http://10.0.100.10:8080/vmlinuz"\n'
        'initrd_url = "http://10.0.100.10:8080/initrd"\n'
        'arguments = "console=ttyS0 quiet mitigations=off nokaslr tsc=reliable lpj=4000000"\n'
    )
    main(["node", "boot-files", str(inventory), str(boot)], standalone_mode=False)
    files = readable / "http"
    files.mkdir()
    kernel_of_the_guest(files)
    inside = ("ip", "netns", "exec", namespace)
    web = ("-m", "http.server", "8080", "--bind", "10.0.100.10", "--directory", files)
    serve = ("dnsmasq", "--keep-in-foreground", "--log-facility=-", "--pid-file",
             "--dhcp-leasefile=/dev/null", f"--conf-file={boot / 'dnsmasq.conf'}")  # fmt: skip
    with running(*inside, sys.executable, *web), running(*inside, *serve) as dnsmasq:
        said = console_of(namespace, MAC, b"nuage-guest booting", BOOTED_WITHIN_S)
        assert b"nuage-guest booting" in said, said[-2000:]
        asked = f"Configuring (net0 {STRANGER})......".encode()
        said = console_of(namespace, STRANGER, asked, BOOTED_WITHIN_S)
        assert asked in said, said[-2000:]
        dnsmasq.terminate()
        assert dnsmasq.stdout is not None
        log = dnsmasq.stdout.read().decode()
    assert f"DHCPACK(mgmt0) 10.0.100.20 {MAC} v1" in log, log
    assert f"DHCPDISCOVER(mgmt0) {STRANGER} ignored" in log, log
    assert not [line for line in log.splitlines() if "OFFER" in line and STRANGER in line]
