"""Raw frames from inside a guest under QEMU: none reaches another IaaS, here or over the tree."""

import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from select import select

import pytest
from tests.system.bpf.bpf_netns import Bridge, Namespaces, Wire, run
from tests.system.bpf.raw_attack import (
    MARK,
    Station,
    allowed,
    as_an_rbridge,
    forged,
    framed,
    install,
    send,
    udp,
)
from tests.system.lab.able import GUEST

from nuage.errors import TimedOut
from nuage.network.forwarding import (
    Drop,
    FloodEntry,
    GuardEntry,
    Label,
    MacEntry,
    Nickname,
    PortEntry,
    PortNumber,
    PortRole,
    PruneEntry,
    RpfEntry,
    SelfEntry,
    TreeEntry,
)
from nuage.network.trill_frame import decode_trill

MISSING = [tool for tool in ("qemu-system-x86_64", "cc") if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
    pytest.mark.skipif(not GUEST.exists(), reason="no guest image: tools/guest/build.py makes it"),
]
BOOT_S_MAX = 240.0
ANSWER_S_MAX = 60.0
ATTEMPT_S = 15.0
ATTEMPTS_MAX = 8
NEAR, FAR = Nickname(0x11), Nickname(0x22)
TRUNK = PortNumber(1)
NEIGHBOUR = bytes.fromhex("02aa00000001")
# The attacker, a guest of its own IaaS, and one of another with that one's address.
ATTACKER = Station(bytes.fromhex("060000000001"), "10.0.0.1", Label(0x10))
FRIEND = Station(bytes.fromhex("060000000002"), "10.0.0.2", Label(0x10))
VICTIM = Station(bytes.fromhex("060000000003"), "10.0.0.2", Label(0xABCDE))
PORTS = {PortNumber(9): ATTACKER, PortNumber(10): FRIEND, PortNumber(11): VICTIM}


class Machine:
    """A guest whose serial console is a pair of pipes and whose card is a tap."""

    def __init__(self, namespace: str, tap: str, mac: bytes) -> None:
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, "qemu-system-x86_64", "-accel", "tcg",
             "-m", "128", "-display", "none", "-monitor", "none", "-serial", "stdio",
             "-drive", f"file={GUEST},format=raw,if=virtio,snapshot=on",
             "-netdev", f"tap,id=n,ifname={tap},script=no,downscript=no",
             "-device", f"virtio-net-pci,netdev=n,mac={mac.hex(':')}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        self._told = b""

    def until(self, text: str, within_s: float) -> str:
        """Return what was printed up to `text`."""
        out = self._process.stdout
        assert out is not None
        deadline_s = time.monotonic() + within_s
        while text.encode() not in self._told:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select([out], [], [], left_s)[0]:
                raise TimedOut(f"{text!r} on the console", after_s=within_s)
            self._told += out.read(4096) or b""
        before, _, self._told = self._told.partition(text.encode())
        return before.decode(errors="replace")

    def type(self, command: str, within_s: float = ANSWER_S_MAX) -> str:
        """Type a command; return what it printed."""
        mark = secrets.token_hex(4)
        assert self._process.stdin is not None
        # The quotes keep the echo of what is typed from looking like the marks.
        self._process.stdin.write(f"echo b''{mark}; {command}; echo e''{mark}\n".encode())
        self.until(f"b{mark}", within_s)
        return self.until(f"e{mark}", within_s)

    def until_it_has_a_shell(self) -> None:
        """Wait for the boot to end; a shell that has just begun may swallow what is typed."""
        self.until(" ready ", BOOT_S_MAX)
        for _ in range(ATTEMPTS_MAX):
            with suppress(TimedOut):
                self.type("true", ATTEMPT_S)
                return
        raise TimedOut("the guest's shell", after_s=ATTEMPTS_MAX * ATTEMPT_S)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


class Node:
    """An RBridge with the attacker's guest, two more ports, and a trunk on the tree."""

    def __init__(self, net: Namespaces, pins: Path) -> None:
        here, there = net.add("p"), net.add("q")
        self.namespace = here
        run("ip", "-n", here, "tuntap", "add", "p9", "mode", "tap", "vnet_hdr")
        run("ip", "-n", here, "link", "set", "p9", "up")
        for number in (1, 10, 11):
            net.cable(here, f"p{number}", there, f"q{number}")
        self.bridge = Bridge(here, NEAR, pins / "p")
        self.bridge.set(
            SelfEntry(NEAR, FAR), TreeEntry(FAR, (TRUNK,)), RpfEntry(FAR, FAR, TRUNK),
            PruneEntry(FAR, Label(0), (TRUNK,)),
            *(FloodEntry(label, tuple(n for n, each in PORTS.items() if each.label == label))
              for label in (ATTACKER.label, VICTIM.label)),
        )  # fmt: skip
        self.bridge.trunk(TRUNK, "p1", NEIGHBOUR)
        for number, each in PORTS.items():
            self.bridge.set(
                PortEntry(number, PortRole.ACCESS, each.mac, each.label, 1400, guarded=True),
                MacEntry(each.label, each.mac, port=number),
                GuardEntry(number, IPv4Address(each.address)),
            )
            self.bridge.bind(number, f"p{number}")
        self.trunk, self.friend, self.victim = (Wire(there, f"q{n}") for n in (1, 10, 11))

    def drops(self) -> dict[Drop, int]:
        return dict(self.bridge.plane.counters().drops)


@pytest.fixture
def node(net: Namespaces, pins: Path) -> Node:
    return Node(net, pins)


@pytest.fixture
def attacker(node: Node) -> Iterator[Machine]:
    machine = Machine(node.namespace, "p9", ATTACKER.mac)
    try:
        machine.until_it_has_a_shell()
        yield machine
    finally:
        machine.end()


def test_no_raw_frame_of_a_guest_reaches_another_iaas(node: Node, attacker: Machine) -> None:
    """Other MACs, addresses, tags and labels, the fabric's own protocols, and what it may send."""
    install(attacker.type)
    claims = forged(ATTACKER, VICTIM)
    roles = as_an_rbridge(ATTACKER, VICTIM, (NEAR, FAR), node.bridge.mac("p9"))
    before = node.drops()
    send(attacker.type, [*claims, *roles, *allowed(ATTACKER, VICTIM, "192.0.2.1")])
    proof = framed(FRIEND.mac, ATTACKER.mac, 0x0800, udp("10.0.0.1", "10.0.0.2", ports=(7, 7)))
    send(attacker.type, [proof])
    deadline_s = time.monotonic() + ANSWER_S_MAX
    while not any(frame.startswith(proof) for frame in node.friend.frames(1.0)):
        assert time.monotonic() < deadline_s, "what it may send does arrive, behind all the rest"
    after = node.drops()
    assert after[Drop.SPOOFED] - before[Drop.SPOOFED] >= len(claims)
    assert after[Drop.BRIDGE_CONTROL] - before[Drop.BRIDGE_CONTROL] >= len(roles)
    assert not [frame for frame in node.victim.frames(0.2) if MARK in frame]
    flooded = [decode_trill(frame) for frame in node.trunk.frames(0.2) if MARK in frame]
    assert flooded, "its own broadcasts go over the tree"
    assert {frame.label for frame in flooded} == {ATTACKER.label}
    assert {frame.inner_smac for frame in flooded} == {ATTACKER.mac}
