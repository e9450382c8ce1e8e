"""Links between storage daemons: who is revoked loses them, who renews keeps them."""

import socket
import ssl
import time
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from tests.system.storage_front.storage_front_daemon import MIB, Daemon, Tls
from tests.system.storage_front.test_storage_front_control import (
    copies,
    open_on,
    replica_of,
    works,
)

from nuage.trust.pki import load_certificate
from nuage.trust.revocation import make_revocation_list

pytestmark = pytest.mark.system
# Lists are looked at each second; the rest is for a machine that stands still meanwhile.
SOON_S = 60.0


def eventually(holds: Callable[[], bool], daemon: Daemon) -> None:
    deadline_s = time.monotonic() + SOON_S
    while not holds():
        assert time.monotonic() < deadline_s, daemon.log
        time.sleep(0.05)  # noqa: TID251 - real processes


def tls_of(daemon: Daemon) -> Tls:
    assert daemon.tls is not None
    return daemon.tls


def connected(head: Daemon) -> set[object]:
    return {copy["node"] for copy in copies(head) if copy["connected"]}


def revoked(node: Daemon) -> str:
    """Return the list with which a node's site takes back what the node has."""
    tls = tls_of(node)
    leaf = load_certificate((tls.folder / "cert.pem").read_text())
    return make_revocation_list(tls.authority, [leaf.serial_number], number=1, now_s=time.time())


def create(sites: list[Daemon]) -> None:
    for site in sites:
        site.ask(
            "create_replica",
            volume="v",
            size_bytes=64 * MIB,
            logical_block_bytes=512,
            uuid="01" * 16,
        )


def test_a_revoked_nodes_links_end_and_none_is_made_again(three_sites: list[Daemon]) -> None:
    head, other, thief = three_sites
    create(three_sites)
    open_on(three_sites, 0, epoch=1)
    eventually(lambda: connected(head) >= {"lyon-io1", "brest-io1"}, head)
    works(head.url(), "write -P 1 0 1M", "flush")
    for site in (head, other):
        tls_of(site).believe(revoked(thief))
    eventually(lambda: "its certificate was revoked" in head.log, head)
    eventually(lambda: connected(head) >= {"lyon-io1"}, head)
    assert "brest-io1" not in connected(head)
    works(head.url(), "read -P 1 0 1M", "write -P 2 0 1M", "flush")
    # The other way: its own daemon takes anybody, but nobody takes it as a head.
    thief.ask(
        "open_head", volume="v", epoch=2, policy="any-2-of-3", iqn="iqn.2015-01.fr.nuage:x",
        replicas=[replica_of(head), replica_of(other)], ack="memory",
    )  # fmt: skip
    refused = "invalid peer certificate: Revoked"
    eventually(lambda: refused in head.log and refused in other.log, other)
    assert thief.head()["state"] != "open"
    works(head.url(), "read -P 2 0 1M", "write -P 3 0 1M", "flush")


def test_a_list_that_cannot_be_read_is_told_and_the_one_before_it_stays(
    three_sites: list[Daemon],
) -> None:
    head, _, thief = three_sites
    create(three_sites)
    tls_of(head).believe(revoked(thief))
    eventually(lambda: "revocations_read" in head.log or poke(head), head)
    tls_of(head).believe("-----BEGIN X509 CRL-----\nnonsense\n-----END X509 CRL-----\n")
    eventually(lambda: "revocations_not_read" in head.log or poke(head), head)
    open_on(three_sites, 0, epoch=1)
    assert "brest-io1" not in connected(head)


def poke(daemon: Daemon) -> bool:
    """Knock at the door: a daemon without links looks at its lists when somebody comes."""
    shown_by(daemon)
    return False


def shown_by(daemon: Daemon) -> bytes:
    """Return the certificate that a daemon shows at its door."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", daemon.replica), timeout=SOON_S) as plain,
        context.wrap_socket(plain) as door,
    ):
        return door.getpeercert(binary_form=True) or b""


def test_a_renewed_certificate_is_shown_without_a_restart(three_sites: list[Daemon]) -> None:
    head = three_sites[0]
    create(three_sites)
    open_on(three_sites, 0, epoch=1)
    before = shown_by(three_sites[1])
    leaf = tls_of(three_sites[1]).issue().public_bytes(Encoding.DER)
    assert leaf != before
    eventually(lambda: shown_by(three_sites[1]) == leaf, three_sites[1])
    # The link that is there goes on, and one that is made anew holds as well.
    works(head.url(), "write -P 4 0 1M", "flush")
    three_sites[1].kill()
    three_sites[1].start()
    eventually(lambda: "lyon-io1" in connected(head), head)
