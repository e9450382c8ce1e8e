"""Two sites in namespaces with an ISP between them: an encrypted trunk, and nothing in clear."""

import asyncio
import ctypes
import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from tests.system.bpf.bpf_tunnel import NUMBER

from nuage.clock import SystemClock
from nuage.daemon.fabric_trunks import TrunkMaker, TrunkNode
from nuage.errors import Unavailable
from nuage.ids import NodeId, SiteId
from nuage.model.fabric import FabricWish, SiteTrunkWish
from nuage.model.infrastructure import ProviderLine
from nuage.network.runner import PacketSocket
from nuage.network.trunk import TrunkDriver, TrunkEnd, TrunkWish
from nuage.network.trunk_wireguard import (
    TrunkUp,
    new_private_key,
    probe,
    public_key_of,
    set_up,
    tear_down,
)
from nuage.network.tunnel_sockets import (
    BUFFER_BYTES,
    IP_MTU_DISCOVER,
    IP_PMTUDISC_DONT,
    sockets_of,
)
from nuage.tool import run_tool

TOOLS = ("ip", "ss", "wg", "wireguard-go", "ethtool", "ping", "nft")
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(any(shutil.which(t) is None for t in TOOLS), reason=f"needs {TOOLS}"),
]
PREFIX = f"nqt{os.getpid() % 10000}"
CLONE_NEWNET = 0x40000000
IP_PMTUDISC_DO = 2
ADDRESSES = {"a": "192.0.2.1", "b": "198.51.100.1"}
ADDRESSES_6 = {"a": "2001:db8:a::1", "b": "2001:db8:b::1"}
MARK = "6e756167652d74656e616e74"  # "nuage-tenant"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def sites() -> Iterator[None]:
    """Namespaces a and b, joined by `isp`, which routes between their public networks."""
    names = [f"{PREFIX}{name}" for name in ("a", "b", "isp")]
    try:
        for name in names:
            ip("netns", "add", name)
        isp = names[2]
        for name, address in ADDRESSES.items():
            gateway = address.rsplit(".", 1)[0] + ".254"
            ip("link", "add", "wan", "netns", PREFIX + name, "type", "veth",
               "peer", "name", f"to-{name}", "netns", isp)  # fmt: skip
            ip("-n", PREFIX + name, "addr", "add", f"{address}/24", "dev", "wan")
            ip("-n", PREFIX + name, "link", "set", "wan", "up")
            ip("-n", PREFIX + name, "route", "add", "default", "via", gateway)
            ip("-n", isp, "addr", "add", f"{gateway}/24", "dev", f"to-{name}")
            ip("-n", isp, "link", "set", f"to-{name}", "up")
        ip("netns", "exec", isp, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@asynccontextmanager
async def namespace(name: str) -> AsyncIterator[None]:
    """Let this thread, and what it starts, be in a site's namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(Path("/run/netns") / (PREFIX + name), os.O_RDONLY)
    assert libc.setns(there, CLONE_NEWNET) == 0
    try:
        yield
    finally:
        assert libc.setns(home, CLONE_NEWNET) == 0
        os.close(there)
        os.close(home)


def wish(
    here: str, keys: dict[str, str], drivers: tuple[TrunkDriver, ...], path: str = "1500"
) -> TrunkWish:
    ends = {
        name: TrunkEnd(
            site_id=f"site-{name}", address=address, public_key=public_key_of(keys[name])
        )
        for name, address in (ADDRESSES_6 if path == "IPv6" else ADDRESSES).items()
    }
    there = "b" if here == "a" else "a"
    return TrunkWish(
        number=NUMBER, provider="isp", here=ends[here], there=ends[there], drivers=drivers
    )


async def test_wireguard_gos_sockets_take_a_burst(sites: None) -> None:
    """Else it loses what comes while it waits for a processor, and streams send that again."""
    keys = {name: new_private_key() for name in ADDRESSES}
    async with namespace("a"):
        trunk = await set_up(wish("a", keys, (TrunkDriver.WIREGUARD_GO,)), keys["a"], SystemClock())
        try:
            told = await run_tool(("ss", "-Huanm", "sport", "=", f":{trunk.plan.listen_port}"))
        finally:
            await tear_down(trunk.plan.port, trunk.plan.tunnel)
    buffers = [int(number) for number in re.findall(r"rb(\d+)", told)]
    assert buffers, told
    assert min(buffers) >= BUFFER_BYTES


async def test_a_tunnel_that_an_earlier_version_made_carries_what_this_one_promises(
    sites: None,
) -> None:
    """It outlived its agent: its sockets are given what they lack; a narrow one is made anew."""
    keys = {name: new_private_key() for name in ADDRESSES}
    lines = {name: ProviderLine("isp", address) for name, address in ADDRESSES.items()}
    trunk = SiteTrunkWish(
        number=NUMBER, here=lines["a"], there=lines["b"], there_site=SiteId("site-b"),
        there_node=NodeId("edge-b"), public_key=public_key_of(keys["b"]),
    )  # fmt: skip
    fabric = FabricWish(revision=1, key="", trunks=(trunk,))
    node = TrunkNode(address=ADDRESSES["a"], site_id=SiteId("site-a"), private_key=keys["a"])
    told: list[str] = []

    def after_a_restart() -> TrunkMaker:
        return TrunkMaker(node, SystemClock(), told.append)

    async with namespace("a"):
        ((key, made),) = [(s.key, s.memory) for s in await after_a_restart().bring(fabric, {})]
        assert made is not None
        try:
            for there in sockets_of(made.tunnel):
                there.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
            (kept,) = await after_a_restart().bring(fabric, {key: made})
            of_sockets = {
                there.getsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER)
                for there in sockets_of(made.tunnel)
                if there.family == socket.AF_INET
            }
            narrow = msgspec.structs.replace(made, mtu_bytes=1382)
            (anew,) = await after_a_restart().bring(fabric, {key: narrow})
        finally:
            await tear_down(made.interface, made.tunnel)
    assert kept.memory is made
    assert of_sockets == ({IP_PMTUDISC_DONT} if made.driver == "wireguard-go" else set())
    assert anew.memory == made
    assert told == [
        f"trunk {made.interface} to edge-b carries 1382 bytes, as an earlier version made it:"
        " made anew for 1390"
    ]


def narrow_line(mtu_bytes: int) -> None:
    """Make the line of `a` narrower, as PPPoE does."""
    ip("-n", PREFIX + "a", "link", "set", "wan", "mtu", str(mtu_bytes))
    ip("-n", PREFIX + "isp", "link", "set", "to-a", "mtu", str(mtu_bytes))


def narrow_router(mtu_bytes: int) -> None:
    """Make the way through the provider narrower, and let nobody hear of it."""
    isp = PREFIX + "isp"
    for name, address in ADDRESSES.items():
        subnet = address.rsplit(".", 1)[0] + ".0/24"
        ip("-n", isp, "route", "change", subnet, "dev", f"to-{name}", "mtu", "lock", str(mtu_bytes))
    silence = (
        "add table ip quiet; add chain ip quiet out { type filter hook output priority 0; };"
        " add rule ip quiet out icmp type destination-unreachable drop"
    )
    subprocess.run(["ip", "netns", "exec", isp, "nft", silence], check=True, capture_output=True)


def go_by_ipv6() -> None:
    """Give everybody IPv6: its header is 20 bytes longer."""
    isp = PREFIX + "isp"
    for name, address in ADDRESSES_6.items():
        gateway = f"{address}:fe".replace("::1:fe", "::fe")
        ip("-n", PREFIX + name, "addr", "add", f"{address}/64", "dev", "wan", "nodad")
        ip("-n", isp, "addr", "add", f"{gateway}/64", "dev", f"to-{name}", "nodad")
        ip("-n", PREFIX + name, "-6", "route", "add", "default", "via", gateway)
    ip("netns", "exec", isp, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")


PATHS: dict[str, Callable[[], None]] = {
    "1500": lambda: None,
    "line of 1492": lambda: narrow_line(1492),
    "router of 1400": lambda: narrow_router(1400),
    "IPv6": go_by_ipv6,
}


@pytest.mark.parametrize("path", PATHS)
async def test_an_encrypted_trunk_carries_full_frames_and_shows_the_isp_nothing(
    sites: None, path: str
) -> None:
    """Over a narrower path in two fragments each, which nobody has to ask for."""
    PATHS[path]()
    keys = {name: new_private_key() for name in ADDRESSES}
    drivers = (TrunkDriver.WIREGUARD_KERNEL, TrunkDriver.WIREGUARD_GO)
    trunks: dict[str, TrunkUp] = {}
    async with namespace("isp"):
        watch = PacketSocket("to-a")
    seen: list[bytes] = []
    loop = asyncio.get_running_loop()
    loop.add_reader(watch.fileno(), lambda: seen.append(watch.receive() or b""))
    try:
        for name in ADDRESSES:
            async with namespace(name):
                made = set_up(wish(name, keys, drivers, path), keys[name], SystemClock())
                trunks[name] = await made
                port = trunks[name].plan.port
                last = "1" if name == "a" else "2"
                await run_tool(("ip", "addr", "add", f"10.99.0.{last}/24", "dev", port))
        assert trunks["a"].plan.driver in drivers
        async with namespace("a"):
            await run_tool(("ping", "-c", "1", "-w", "9", "10.99.0.2"))  # ends once one came
            full = ["-M", "do", "-s", str(1390 - 28), "-p", MARK[:32], "-c", "5", "-i", "0.2"]
            done = await run_tool(("ping", *full, "-W", "3", "10.99.0.2"))
        assert " 0% packet loss" in done
    finally:
        for name, trunk in trunks.items():
            async with namespace(name):
                await tear_down(trunk.plan.port, trunk.plan.tunnel)
        loop.remove_reader(watch.fileno())
        watch.close()
    packets = [f for f in seen if f[12:14] == b"\x08\x00" and f[23] == socket.IPPROTO_UDP]
    fragments = [packet for packet in packets if packet[20] & 0x3F or packet[21]]
    assert len(fragments) >= 10 if path == "line of 1492" else not fragments
    assert not any(p[20] & 0x40 for p in packets if len(p) > 1370), "routers may cut them"
    assert sum(len(frame) > 1370 for frame in seen) >= 5
    known = (b"\x08\x00", b"\x08\x06", b"\x86\xdd")  # no TRILL, no VXLAN: only the tunnel
    assert all(frame[12:14] in known for frame in seen if frame)
    told = b"".join(seen)
    assert bytes.fromhex(MARK) not in told
    assert bytes((10, 99, 0, 2)) not in told


async def test_without_a_usable_driver_nothing_is_left_and_every_reason_is_told(
    sites: None,
) -> None:
    if (await probe(TrunkDriver.WIREGUARD_KERNEL)).usable:
        pytest.skip("this kernel has WireGuard")
    keys = {name: new_private_key() for name in ADDRESSES}
    async with namespace("a"):
        with pytest.raises(Unavailable, match="wireguard-kernel"):
            await set_up(wish("a", keys, (TrunkDriver.WIREGUARD_KERNEL,)), keys["a"], SystemClock())
        links = await run_tool(("ip", "-br", "link"))
    assert "ntr5" not in links
