"""The kernel plane and the plane in Python agree on random frames: what leaves, and why not."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from random import Random

import pytest
from tests.system.bpf.bpf_netns import Bridge, Namespaces, Wire
from tests.system.bpf.bpf_tunnel import Tunnel, TunnelWire

from nuage.network.forwarding import (
    PORT_NONE,
    AdjacencyEntry,
    Direction,
    Drop,
    Entry,
    FibEntry,
    FloodEntry,
    ForwardingDelta,
    GuardEntry,
    Label,
    MacEntry,
    NextHop,
    Nickname,
    PolicyEntry,
    PortEntry,
    PortNumber,
    PortRole,
    PruneEntry,
    RpfEntry,
    SelfEntry,
    TreeEntry,
)
from nuage.network.software_plane import SoftwarePlane
from nuage.network.trill_frame import (
    ALL_EGRESS_RBRIDGES,
    ALL_RBRIDGES,
    TrillFrame,
    decode_trill,
    encode_trill,
)
from nuage.network.wire import MalformedFrame

pytestmark = pytest.mark.system
TRUNKS = (1, 2, 3)
ACCESS = (11, 12, 13, 14)  # guarded and filtered, free, free in the second label, filtered
LABELS = (Label(0x54321), Label(0x777))
ME, TREE, FAR, NEAR = Nickname(0x100), Nickname(0x300), Nickname(0x200), Nickname(0x301)
GUESTS = {11: "0611", 12: "0612", 13: "0613", 14: "0614"}
V4 = [IPv4Address(f"10.0.0.{n}") for n in range(1, 5)]
V6 = [IPv6Address(f"fd00::{n}") for n in range(1, 3)]


def guest(number: int) -> bytes:
    return bytes.fromhex(f"{GUESTS[number]}00000001")


def neighbour(number: int) -> bytes:
    return bytes((2, 0xAA, 0, 0, 0, number))


def port(number: int) -> PortNumber:
    return PortNumber(number)


@dataclass
class Pair:
    """One RBridge twice: in the kernel, and in Python."""

    bridge: Bridge
    software: SoftwarePlane
    wires: dict[int, Wire | TunnelWire]
    macs: dict[int, bytes]


def tables(macs: dict[int, bytes]) -> list[Entry]:
    entries: list[Entry] = [SelfEntry(ME, TREE)]
    entries.extend(
        PortEntry(port(number), PortRole.TRUNK, macs[number], mtu_bytes=9000) for number in TRUNKS
    )
    entries.extend(AdjacencyEntry(port(number), neighbour(number)) for number in TRUNKS[:2])
    for number, label, guarded, filtered in (
        (11, 0, True, True), (12, 0, False, False), (13, 1, False, False), (14, 0, False, True),
    ):  # fmt: skip
        entries.append(
            PortEntry(
                port(number), PortRole.ACCESS, guest(number), LABELS[label], mtu_bytes=1400,
                guarded=guarded, filtered=filtered,
            )
        )  # fmt: skip
    hop = [NextHop(port(n), neighbour(n), macs[n]) for n in TRUNKS]
    return [
        *entries,
        FibEntry(FAR, (hop[0],)), FibEntry(NEAR, (hop[1],)),
        FibEntry(TREE, (hop[2],), backups=(hop[1],)),
        TreeEntry(TREE, (port(1), port(2))), TreeEntry(NEAR, (port(2), port(3))),
        *(RpfEntry(tree, nick, port(2 if nick == NEAR else 1))
          for tree in (TREE, NEAR) for nick in (FAR, NEAR) if (tree, nick) != (NEAR, FAR)),
        RpfEntry(NEAR, FAR, PORT_NONE),
        PruneEntry(TREE, LABELS[0], (port(1), port(2))), PruneEntry(TREE, Label(0), (port(1),)),
        PruneEntry(NEAR, LABELS[0], (port(3),)),
        FloodEntry(LABELS[0], (port(11), port(12), port(14))), FloodEntry(LABELS[1], (port(13),)),
        MacEntry(LABELS[0], guest(11), port=port(11)),
        MacEntry(LABELS[0], bytes.fromhex("06dd00000001"), nickname=FAR),
        MacEntry(LABELS[1], bytes.fromhex("06dd00000002"), nickname=Nickname(0x999)),
        GuardEntry(port(11), V4[0]), GuardEntry(port(11), V6[0]),
        PolicyEntry(port(11), 0, Direction.EGRESS, 0),
        PolicyEntry(port(11), 1, Direction.INGRESS, 6, ip_network("10.0.0.2/31"), 22, 80),
        PolicyEntry(port(11), 3, Direction.INGRESS, 1, ip_network("10.0.0.0/8"), 8, 8),
        PolicyEntry(port(14), 0, Direction.EGRESS, 17, None, 53, 53),
        PolicyEntry(port(14), 1, Direction.INGRESS, 58, ip_network("fd00::/64")),
        PolicyEntry(port(14), 2, Direction.INGRESS, 17, ip_network("10.0.0.1/32")),
    ]  # fmt: skip


@pytest.fixture(params=["cables", "tunnel"])
def pair(request: pytest.FixtureRequest, net: Namespaces, pins: Path) -> Iterator[Pair]:
    """With `tunnel`, the first trunk lies over one, and what is plain goes the short way."""
    here, there = net.add("p"), net.add("q")
    names = {number: f"p{number}" for number in (*TRUNKS, *ACCESS)}
    bridge, wires = Bridge(here, ME, pins / "p"), dict[int, Wire | TunnelWire]()
    tunnel = Tunnel(here, mtu_bytes=9000) if request.param == "tunnel" else None
    if tunnel is not None:
        names[1], wires[1] = tunnel.plan.port, TunnelWire(tunnel)
    for number in (*TRUNKS, *ACCESS):
        if number not in wires:
            net.cable(here, f"p{number}", there, f"q{number}")
            wires[number] = Wire(there, f"q{number}")
    macs = {number: bridge.mac(name) for number, name in names.items()}
    software = SoftwarePlane()
    entries = tables(macs)
    software.apply(ForwardingDelta(tuple(entries)))
    bridge.set(*entries)
    for number, name in names.items():
        bridge.bind(number, name)
    if tunnel is not None:
        tunnel.shorten(bridge, 1)
    yield Pair(bridge, software, wires, macs)
    if tunnel is not None:
        tunnel.close()
        sums = bridge.plane.sums()
        assert min(sums["into_tunnel"], sums["out_of_tunnel"]) > 0


class Frames:
    """Random frames from small pools, so that they often nearly make sense."""

    def __init__(self, prng: Random, macs: dict[int, bytes]) -> None:
        self._prng = prng
        self._macs = macs

    def _mac(self) -> bytes:
        pool = [guest(number) for number in ACCESS]
        pool += [bytes.fromhex(text) for text in ("06dd00000001", "06dd00000002", "06ee00000003")]
        return self._prng.choice(pool)

    def _destination(self) -> bytes:
        odd = (b"\xff" * 6, bytes.fromhex("333300000001"), bytes.fromhex("0180c2000003"))
        return self._prng.choice(odd) if self._prng.random() < 0.3 else self._mac()

    def _transport(self) -> tuple[int, bytes]:
        prng = self._prng
        ports = (22, 53, 67, 68, 80, 547, 4000)
        kind = prng.choice((6, 17, 1, 58, 47))
        if kind in (6, 17):
            pair = prng.choice(ports).to_bytes(2, "big") + prng.choice(ports).to_bytes(2, "big")
            return kind, pair + bytes(prng.choice((16, 2, 0)))
        kinds = (0, 8, 3, 11, 128, 129, 133, 134, 135, 136)
        return kind, bytes((prng.choice(kinds), 0, 0, 0, 0, prng.randrange(3), 0, 1))

    def _said(self, size: int) -> int:
        """Return what a header says of the bytes behind it."""
        prng = self._prng
        return prng.choice((0, 3, 8, 14, 600)) if prng.random() < 0.1 else size

    def _ipv4(self) -> bytes:
        prng = self._prng
        kind, body = self._transport()
        options = bytes(4 * prng.choice((0, 0, 0, 1)))
        fragment = prng.choice((0, 0, 0, 0, 0x2000, 0x2010))
        first = 0x40 | (5 + len(options) // 4) if prng.random() < 0.95 else prng.randrange(256)
        size = 20 + len(options) + self._said(len(body))
        head = bytes((first, 0)) + size.to_bytes(2, "big") + b"\0\0"
        head += fragment.to_bytes(2, "big") + bytes((64, kind, 0, 0))
        return head + prng.choice(V4).packed + prng.choice(V4).packed + options + body

    def _ipv6(self) -> bytes:
        prng = self._prng
        kind, body = self._transport()
        for _ in range(prng.choice((0, 0, 0, 1, 2, 7))):
            if prng.random() < 0.3:
                offset = prng.choice((0, 1, 8))
                kind, body = 44, bytes((kind, 0)) + offset.to_bytes(2, "big") + bytes(4) + body
            else:
                kind, body = prng.choice((0, 43, 60)), bytes((kind, 0)) + bytes(6) + body
        head = b"\x60\0\0\0" + self._said(len(body)).to_bytes(2, "big") + bytes((kind, 64))
        return head + prng.choice(V6).packed + prng.choice(V6).packed + body

    def native(self, source: bytes) -> bytes:
        prng = self._prng
        smac = source if prng.random() < 0.8 else prng.choice((self._mac(), b"\1" * 6, bytes(6)))
        kind = prng.random()
        if kind < 0.5:
            body = b"\x08\x00" + self._ipv4()
        elif kind < 0.75:
            body = b"\x86\xdd" + self._ipv6()
        elif kind < 0.8:
            body = b"\x81\x00\x00\x05\x88\xb5tagged"
        else:
            types = ("0806", "88b5", "22f3", "22f4", "8946", "0026")
            body = bytes.fromhex(prng.choice(types)) + prng.randbytes(20)
        if prng.random() < 0.05:
            body = body[: prng.randrange(2, len(body))]
        size = 1500 if prng.random() < 0.02 else 60
        return (self._destination() + smac + body).ljust(size, b"\0")

    def trill(self, number: int) -> bytes:
        prng = self._prng
        nicknames = (ME, TREE, FAR, NEAR, Nickname(0x999), Nickname(0), Nickname(0xFFC0))
        multi = prng.random() < 0.5
        inner = self.native(self._mac())
        options = prng.choice((b"",) * 8 + (bytes(4), bytes(8), b"\x80\0\0\0"))
        label = prng.choice((LABELS[0], LABELS[0], LABELS[1], Label(0x111), None))
        mine = ALL_RBRIDGES if multi else self._macs[number]
        frame = TrillFrame(
            outer_dmac=mine if prng.random() < 0.95 else self._mac(),
            outer_smac=neighbour(number) if prng.random() < 0.95 else self._mac(),
            multi=multi,
            hop_count=prng.choice((0, 1, 2, 60)),
            egress=prng.choice((TREE, NEAR) if multi and prng.random() < 0.8 else nicknames),
            ingress=prng.choice((FAR, FAR, NEAR, NEAR, *nicknames)),
            inner_dmac=inner[:6], inner_smac=inner[6:12], label=label, vlan=5,
            priority=prng.randrange(8), ethertype=int.from_bytes(inner[12:14], "big"),
            payload=inner[14:], version=prng.choice((0,) * 30 + (1,)), options=options,
        )  # fmt: skip
        data = encode_trill(frame)
        if prng.random() < 0.05:
            data = self._channel(frame)
        if prng.random() < 0.1:
            at = prng.randrange(12, min(60, len(data)))
            data = data[:at] + prng.randbytes(1) + data[at + 1 :]
        return data[: prng.randrange(14, len(data))] if prng.random() < 0.03 else data

    def _channel(self, frame: TrillFrame) -> bytes:
        echo = self._prng.choice((b"\0\3\x80\0echo", b"\0\2\x80\0bfd."))
        return encode_trill(
            TrillFrame(
                outer_dmac=frame.outer_dmac, outer_smac=frame.outer_smac, multi=False,
                hop_count=63, egress=self._prng.choice((Nickname(0xFFC0), ME, FAR)),
                ingress=FAR, inner_dmac=ALL_EGRESS_RBRIDGES,
                inner_smac=frame.outer_smac, label=None, vlan=1, priority=7, ethertype=0x8946,
                payload=echo,
            )
        )  # fmt: skip


def is_padded(frame: bytes) -> bool:
    """Tell whether the kernel would pad what is inside: shorter than Ethernet allows."""
    try:
        return len(decode_trill(frame).payload) < 46
    except MalformedFrame:
        return False


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_both_planes_agree_on_random_frames(pair: Pair, seed: int) -> None:
    prng = Random(seed)
    frames = Frames(prng, pair.macs)
    missing: list[str] = []
    for _ in range(2500):
        number = prng.choice((1, 1, 2, 3, *ACCESS))
        frame = frames.trill(number) if number in TRUNKS else frames.native(guest(number))
        if len(frame) < 14 or (number in TRUNKS and is_padded(frame)):
            continue
        sent = pair.software.receive(port(number), frame, time.monotonic())
        expected = Counter((int(one.port), one.frame) for one in sent)
        pair.wires[number].send(frame)
        got: Counter[tuple[int, bytes]] = Counter()
        for out in {one.port for one in sent}:
            count = sum(one.port == out for one in sent)
            got.update((out, data) for data in pair.wires[out].frames(0.5, count))
        got.update((out, data) for out, wire in pair.wires.items() for data in wire.frames(0.0))
        if got != expected:
            missing.append(
                f"port {number} {frame.hex()}\n  want {show(expected)}\n  got  {show(got)}"
            )
        if len(missing) > 3:
            break
    assert not missing, "\n".join(missing)
    compare_counters(pair)


def show(frames: Counter[tuple[int, bytes]]) -> list[str]:
    return [f"{out}:{data.hex()}" for out, data in frames]


def compare_counters(pair: Pair) -> None:
    kernel, software = pair.bridge.plane.counters(), pair.software.counters()
    assert {k: v for k, v in kernel.drops.items() if v} == {
        k: v for k, v in software.drops.items() if v
    }
    assert len([cause for cause in Drop if software.drops[cause]]) >= 15
    for name in ("ingress_frames", "transit_frames", "egress_frames", "flooded_frames"):
        assert getattr(kernel, name) == getattr(software, name) > 0, name
    assert pair.bridge.plane.sums()["punted"] == len(pair.software.punts) > 0
    known = {(f.label, f.mac, f.nickname, f.port) for f in pair.software.learned()}
    assert {(f.label, f.mac, f.nickname, f.port) for f in pair.bridge.plane.learned()} == known
