"""iSCSI to another site: what crosses the line, who is let in, and what outlives what."""

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.storage_front.far_site import (
    HOST,
    IONODE,
    PORTAL_PORT,
    VNODE,
    Federation,
    Line,
    two_sites,
)
from tests.system.storage_front.storage_front_daemon import IQN, MIB, Daemon, Tls, free_port

from nuage.ids import FederationId
from nuage.model.infrastructure import NodeRole
from nuage.trust.pki import load_certificate
from nuage.trust.revocation import make_revocation_list

TOOLS = ("ip", "nft", "ss", "tcpdump", "qemu-io")
RELAY = Path(sys.executable).with_name("nuage-relay")
PORTAL = f"{IONODE}:{PORTAL_PORT}"
URL = f"iscsi://{PORTAL}/{IQN}/0"
TIMEOUT_S = 10.0
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(any(shutil.which(t) is None for t in TOOLS), reason=f"needs {TOOLS}"),
    pytest.mark.skipif(not RELAY.exists(), reason="nuage-relay is not built: run `make setup`"),
]


class Sites:
    """A line, a V-node at one end, and at the other a daemon that serves a volume."""

    def __init__(self, line: Line, folder: Path, binary: Path) -> None:
        federation = Federation(folder / "federation")
        self.line, self.folder = line, folder
        self.vnode = federation.node("marne", NodeRole.VNODE, "marne-v1")
        self.ionode = federation.node("lyon", NodeRole.IONODE, "lyon-io1")
        self.clear_from = folder / "clear-from"
        self.clear_from.write_text(f"{HOST}/24\n")
        self.federation = federation
        self.binary = binary
        self.daemons: list[Daemon] = []
        self.daemon = self.start(self.ionode, IONODE, line.ionode)

    def start(self, tls: Tls, address: str, namespace: str) -> Daemon:
        """Start a daemon that serves a volume."""
        daemon = Daemon(
            self.binary, self.folder / f"daemon-{address}", [PORTAL_PORT], free_port(),
            PORTAL_PORT + 1, tls=tls, host=address, bound=address,
            inside=self.line.inside(namespace), more=["--clear-from", str(self.clear_from)],
        )  # fmt: skip
        self.daemons.append(daemon)
        daemon.start()
        daemon.ask(
            "create_replica", volume="v", size_bytes=64 * MIB, logical_block_bytes=512,
            uuid="01" * 16,
        )  # fmt: skip
        self.open(daemon, epoch=1)
        return daemon

    def open(self, daemon: Daemon, epoch: int) -> None:
        """Open the volume's head."""
        daemon.ask("open_head", volume="v", epoch=epoch, policy="local", iqn=IQN)

    def acts(self, *acts: str, node: str = "lyon-io1") -> list[str]:
        """Have the V-node's initiators do something; a line of each."""
        done = self.line.script(
            "far_process.py", str(RELAY), str(self.folder / "relay"), str(self.vnode.folder),
            PORTAL, node, IQN, *acts,
        )  # fmt: skip
        assert done.returncode == 0, (done.stderr, self.relay_log)
        lines = done.stdout.splitlines()  # the log is among them
        return [line for line in lines if line.startswith(acts)]

    @property
    def relay_log(self) -> str:
        """What the relay has written."""
        log = self.folder / "relay" / "relay.log"
        return log.read_text() if log.exists() else ""

    def release(self) -> None:
        """End the daemons and the relay."""
        for daemon in self.daemons:
            daemon.release()
        control = str(self.folder / "relay" / "control")
        if Path(control).exists():
            with socket.socket(socket.AF_UNIX) as relay:
                relay.connect(control)
                credentials = relay.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            os.kill(int.from_bytes(credentials[:4], sys.byteorder), signal.SIGTERM)


@pytest.fixture
def sites(tmp_path: Path, storaged_binary: Path) -> Iterator[Sites]:
    with two_sites() as line:
        sites = Sites(line, tmp_path, storaged_binary)
        try:
            yield sites
        finally:
            sites.release()


def test_nothing_of_a_tenant_crosses_to_another_site_in_clear(sites: Sites) -> None:
    line, pattern = sites.line, b"\x5a" * 256
    # In clear, from where that is allowed, so that the capture is known to see what there is.
    sites.clear_from.write_text(f"{VNODE}\n")
    seen = sites.folder / "clear.pcap"
    with line.captured(seen):
        done = line.on_vnode("qemu-io", "-f", "raw", "-c", "write -P 0x5a 0 64k", URL)
        assert done.returncode == 0, done.stdout
    assert pattern in seen.read_bytes()
    assert IQN.encode() in seen.read_bytes()
    # From a V-node of another site, the same words: by the relay, and only by it.
    sites.clear_from.write_text(f"{HOST}/24\n")
    seen = sites.folder / "far.pcap"
    with line.captured(seen):
        wrote, read, went_on = sites.acts("write -P 0x5a 1M 1M", "read -v -P 0x5a 1M 64k", "~")
    assert wrote.startswith("write -P 0x5a 1M 1M: 0 "), (wrote, sites.relay_log)
    assert read.startswith("read -v -P 0x5a 1M 64k: 0 "), read
    assert "verification failed" not in read
    assert "~: 0 after " in went_on, (went_on, sites.relay_log)
    line.on_vnode("nft", "delete", "table", "ip", "nuage_disks")  # somebody who knows no relay
    refused = line.on_vnode("qemu-io", "-f", "raw", "-c", "read 0 64k", URL)
    assert refused.returncode != 0
    assert "iscsi_in_clear_refused" in sites.daemon.log
    found = seen.read_bytes()
    assert len(found) > MIB, "it did cross the line"
    for word in (pattern, b"\x11" * 256, b"\x12" * 256, b"iqn."):
        assert word not in found
    near = subprocess.run(  # a host of its own site needs no relay
        [*line.inside(line.ionode), "qemu-io", "-f", "raw", "-c", "read -P 0x5a 1M 64k", URL],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert near.returncode == 0, near.stdout


def test_a_daemon_of_another_node_is_not_spoken_to(sites: Sites) -> None:
    (said,) = sites.acts("read 0 4k", node="lyon-io2")
    assert said.startswith("read 0 4k: 1 "), said
    assert "lyon-io1 is there" in sites.relay_log


def until_there(gate: Path) -> None:
    """Wait until another process says when, at most a minute."""
    deadline_s = time.monotonic() + 60
    while not gate.exists() and time.monotonic() < deadline_s:
        time.sleep(0.02)  # noqa: TID251 - another process works meanwhile


def test_an_initiator_outlives_the_relay_and_a_daemon_that_is_away(sites: Sites) -> None:
    gate = sites.folder / "gate"

    def away() -> None:
        until_there(gate)
        sites.daemon.kill()
        time.sleep(1.5)  # noqa: TID251 - so that it is missed
        sites.daemon.start()
        sites.open(sites.daemon, epoch=2)

    thread = threading.Thread(target=away)
    thread.start()
    daemon, relay = sites.acts(f"!{gate}", "!")
    thread.join()
    for said in (daemon, relay):
        assert ": 0 after " in said, (said, sites.relay_log)
        assert "verification failed" not in said
        assert said.count("65536/65536") == 3, said


@pytest.mark.parametrize("is_far", [True, False])
def test_an_initiator_follows_a_head_to_another_node_and_to_its_own_site(
    sites: Sites, *, is_far: bool
) -> None:
    """The volume there is another one: only where requests go is looked at."""
    if is_far:
        tls = sites.federation.node("lyon", NodeRole.IONODE, "lyon-io2")
        sites.start(tls, HOST, sites.line.ionode)
    else:
        tls = sites.federation.node("marne", NodeRole.IONODE, "marne-io1")
        sites.clear_from.write_text(f"{HOST}/24\n{VNODE}\n")
        sites.start(tls, VNODE, sites.line.vnode)
    gate = sites.folder / "gate"

    def lost() -> None:
        until_there(gate)
        sites.daemon.kill()

    thread = threading.Thread(target=lost)
    thread.start()
    (said,) = sites.acts(f">{gate} {HOST if is_far else VNODE}:{PORTAL_PORT} {'lyon-io2' * is_far}")
    thread.join()
    assert "wrote 65536/65536 bytes at offset 65536" in said, (said, sites.relay_log)
    assert "read 65536/65536 bytes at offset 65536" in said
    took = re.search(r"after ([0-9.]+) s", said)
    assert took is not None
    assert float(took[1]) < 5.0, said  # it is led there after one; an initiator's pauses are more


def knock(daemon: Daemon, tls: Tls, *, alpn: bool) -> bytes:
    """Return what a daemon answers to an iSCSI login over TLS, b"" where it hangs up."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(tls.folder / "cert.pem", tls.folder / "key.pem")
    if alpn:
        context.set_alpn_protocols(["nuage-iscsi"])
    data = b"InitiatorName=iqn.x:y\0SessionType=Discovery\0"
    head = bytes([0x43, 0x87, 0, 0, 0]) + len(data).to_bytes(3, "big") + bytes(40)
    try:
        with (
            socket.create_connection(("127.0.0.1", daemon.replica), timeout=TIMEOUT_S) as plain,
            context.wrap_socket(plain) as door,
        ):
            door.sendall(head + data + bytes(-len(data) % 4))
            return door.recv(48)
    except (ssl.SSLError, ConnectionError):
        return b""


def test_only_vnodes_of_the_federation_that_nobody_revoked_bring_iscsi(
    tmp_path: Path, storaged_binary: Path
) -> None:
    federation = Federation(tmp_path / "ours")
    ours = federation.node("lyon", NodeRole.IONODE, "lyon-io1")
    vnode = federation.node("marne", NodeRole.VNODE, "marne-v1")
    stranger = Federation(tmp_path / "theirs", FederationId("elsewhere"))
    daemon = Daemon(
        storaged_binary, tmp_path / "daemon", [free_port()], free_port(), free_port(), tls=ours
    )
    daemon.start()
    try:
        assert knock(daemon, vnode, alpn=True)[:1] == b"\x23"  # a login's answer
        assert knock(daemon, vnode, alpn=False) == b""  # it has no business with copies
        for role, node in ((NodeRole.IONODE, "marne-io1"), (NodeRole.EDGE, "marne-edge")):
            assert knock(daemon, federation.node("marne", role, node), alpn=True) == b""
        other = stranger.node("marne", NodeRole.VNODE, "marne-v1")
        assert knock(daemon, other, alpn=True) == b""
        leaf = load_certificate((vnode.folder / "cert.pem").read_text())
        ours.believe(
            make_revocation_list(vnode.authority, [leaf.serial_number], number=1, now_s=time.time())
        )
        time.sleep(1.1)  # noqa: TID251 - it looks at its lists each second
        assert knock(daemon, vnode, alpn=True) == b""
    finally:
        daemon.release()
