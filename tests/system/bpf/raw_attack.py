"""Raw frames that a guest may try against others, and how it comes to send them."""

import gzip
import subprocess
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from nuage.network.dhcp import SERVER_MAC
from nuage.network.forwarding import Label, Nickname
from nuage.network.trill_frame import TrillFrame, encode_trill

SOURCE = Path(__file__).with_name("raw_frames.c")
MARK = b"\xa7\x5e" * 8  # in every frame; nothing else says it
BROADCAST = b"\xff" * 6
TYPED_MAX = 800  # characters of one line: the guest's shell takes 1,024
RANDOM_COUNT = 24
RANDOM_TYPES = range(0x0900, 0x8000)  # no protocol that anything here knows
Shell = Callable[[str], str]  # does what is typed, and returns what it printed


@dataclass(frozen=True)
class Station:
    """A guest's port, as the catalogue has it."""

    mac: bytes
    address: str
    label: Label


def install(type_: Shell) -> None:
    """Put the program that sends raw frames into a guest, by its console."""
    with TemporaryDirectory() as directory:
        program = Path(directory) / "raw_frames"
        subprocess.run(
            ["cc", "-Os", "-s", "-static", "-nostdlib", "-ffreestanding", "-fno-pie", "-no-pie",
             "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-Wall", "-Werror",
             "-Wl,--build-id=none,-N", "-o", str(program), str(SOURCE)],
            check=True, capture_output=True,
        )  # fmt: skip
        text = b64encode(gzip.compress(program.read_bytes(), mtime=0)).decode()
    type_("rm -f /tmp/rf.b64")
    for start in range(0, len(text), TYPED_MAX):
        type_(f"echo {text[start : start + TYPED_MAX]} >>/tmp/rf.b64")
    told = type_(
        "base64 -d /tmp/rf.b64 | gunzip >/tmp/rf; chmod +x /tmp/rf; : | /tmp/rf eth0; echo r$?",
    )
    assert "r0" in told, told


def send(type_: Shell, frames: list[bytes]) -> None:
    """Send frames out of a guest, in their order."""
    lines: list[str] = []
    for frame in [*frames, b""]:
        text = frame.ljust(60, b"\0").hex() if frame else ""
        if lines and (not text or len(text) + sum(map(len, lines)) > TYPED_MAX):
            told = type_(f"echo {'_'.join(lines)}_ | /tmp/rf eth0; echo r$?")
            assert "r0" in told, told
            lines = []
        lines.append(text)


def udp(source: str, target: str, *, ports: tuple[int, int] = (1000, 2000)) -> bytes:
    """Return an IPv4 packet with the mark."""
    body = ports[0].to_bytes(2, "big") + ports[1].to_bytes(2, "big")
    body += (8 + len(MARK)).to_bytes(2, "big") + b"\0\0" + MARK
    head = b"\x45\0" + (20 + len(body)).to_bytes(2, "big") + b"\0\0\0\0\x40\x11\0\0"
    head += IPv4Address(source).packed + IPv4Address(target).packed
    total = sum(int.from_bytes(head[n : n + 2], "big") for n in range(0, 20, 2))
    total = (total & 0xFFFF) + (total >> 16)
    total = 0xFFFF - ((total & 0xFFFF) + (total >> 16))
    return head[:10] + total.to_bytes(2, "big") + head[12:] + body


def framed(dmac: bytes, smac: bytes, ethertype: int, body: bytes = MARK) -> bytes:
    return dmac + smac + ethertype.to_bytes(2, "big") + body


def forged(me: Station, victim: Station) -> list[bytes]:
    """Frames that claim an address, a role or a tag that is not the sender's."""
    packet = udp(me.address, victim.address)
    stranger = str(IPv4Address(me.address) + 77)
    router_advertisement = b"\x60\0\0\0\0\x18\x3a\xff" + b"\xfe\x80" + bytes(13) + b"\x01"
    router_advertisement += b"\xff\x02" + bytes(13) + b"\x01" + b"\x86\0\0\0" + bytes(4) + MARK
    numbers = Random(4)
    high, low = victim.label >> 12, victim.label & 0xFFF
    fine_grained = high.to_bytes(2, "big") + b"\x89\x3b" + low.to_bytes(2, "big") + b"\x08\0"
    return [
        framed(BROADCAST, victim.mac, 0x0800, packet),  # the victim's MAC
        framed(victim.mac, bytes.fromhex("02badbadbad0"), 0x0800, packet),  # nobody's
        framed(victim.mac, me.mac, 0x0800, udp(stranger, victim.address)),
        framed(BROADCAST, me.mac, 0x0800, udp(stranger, "255.255.255.255")),
        framed(BROADCAST, me.mac, 0x0800, udp(me.address, "255.255.255.255", ports=(67, 68))),
        framed(BROADCAST, me.mac, 0x86DD, router_advertisement),
        framed(victim.mac, me.mac, 0x893B, fine_grained + packet),  # the victim's label
        *(
            framed(victim.mac, me.mac, 0x8100, vid.to_bytes(2, "big") + b"\x08\0" + packet)
            for vid in (0, 1, low, high)
        ),
        *(
            framed(dmac, me.mac, numbers.choice(RANDOM_TYPES), MARK + numbers.randbytes(16))
            for _ in range(RANDOM_COUNT // 2)
            for dmac in (BROADCAST, victim.mac)
        ),
    ]


def as_an_rbridge(
    me: Station, victim: Station, nicknames: tuple[Nickname, ...], node_mac: bytes
) -> list[bytes]:
    """Frames of the fabric's own protocols, as a neighbour would send them."""
    return [
        *(
            encode_trill(
                TrillFrame(
                    outer_dmac=node_mac, outer_smac=me.mac, multi=multi, hop_count=9,
                    egress=egress, ingress=ingress, inner_dmac=victim.mac, inner_smac=me.mac,
                    label=victim.label, vlan=0, priority=0, ethertype=0x0800,
                    payload=udp(me.address, victim.address),
                )
            )
            for egress in nicknames for ingress in nicknames for multi in (False, True)
        ),
        framed(bytes.fromhex("0180c2000041"), me.mac, 0x22F4, b"\x83" + MARK),  # IS-IS
        framed(bytes.fromhex("0180c2000000"), me.mac, 0x0026, b"\x42\x42\x03" + MARK),  # STP
        framed(victim.mac, me.mac, 0x8946),  # RBridge Channel
    ]  # fmt: skip


def allowed(me: Station, victim: Station, node: str) -> list[bytes]:
    """Frames that are the sender's own to send, towards what it should not reach."""
    return [
        framed(victim.mac, me.mac, 0x0800, udp(me.address, victim.address)),
        framed(BROADCAST, me.mac, 0x0800, udp(me.address, "255.255.255.255")),
        framed(bytes.fromhex("01005e000001"), me.mac, 0x0800, udp(me.address, "224.0.0.1")),
        framed(SERVER_MAC, me.mac, 0x0800, udp(me.address, node, ports=(4341, 4341))),  # LISP
        framed(SERVER_MAC, me.mac, 0x0800, udp(me.address, node, ports=(4789, 4789))),  # VXLAN
    ]
