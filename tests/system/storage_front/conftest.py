"""Real storage daemons on loopback for the tests of this folder."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.system.storage_front.storage_front_daemon import Daemon, Tls, free_port

from nuage.channel.identity import Identity
from nuage.ids import FederationId, NodeId, SiteId
from nuage.model.infrastructure import NodeRole
from nuage.trust import pki


@pytest.fixture(scope="session")
def storaged_binary() -> Path:
    """Return the daemon to test: `NUAGE_STORAGED`, or the one beside the interpreter."""
    named = os.environ.get("NUAGE_STORAGED")
    binary = Path(named) if named else Path(sys.executable).with_name("nuage-storaged")
    if not binary.exists():
        pytest.skip("nuage-storaged is not built: run `make setup`")
    return binary


@pytest.fixture
def daemons(storaged_binary: Path, tmp_path: Path) -> Iterator[Callable[[str], Daemon]]:
    """Return a maker of started daemons without TLS."""
    made: list[Daemon] = []

    def make(name: str = "one") -> Daemon:
        ports = [free_port(), free_port()]
        daemon = Daemon(storaged_binary, tmp_path / name, ports, free_port())
        made.append(daemon)
        daemon.start()
        return daemon

    yield make
    for daemon in made:
        daemon.release()


@pytest.fixture
def three_sites(storaged_binary: Path, tmp_path: Path) -> Iterator[list[Daemon]]:
    """Return daemons of three sites of one federation, with certificates."""
    federation = FederationId("france")
    now_s = time.time()
    root = pki.make_root(federation, now_s)
    made = []
    for site in map(SiteId, ("marne", "lyon", "brest")):
        site_key = Ed25519PrivateKey.generate()
        authority = pki.Authority(
            pki.issue_site_authority(
                root,
                site_key.public_key(),
                federation_id=federation,
                site_id=site,
                now_s=now_s,
            ),
            site_key,
        )
        folder = tmp_path / site
        folder.mkdir()
        identity = Identity(federation, site, NodeRole.IONODE, NodeId(f"{site}-io1"))
        tls = Tls(folder, authority, identity)
        tls.issue()
        tls.believe("")
        (folder / "ca.pem").write_text(pki.pem_of(root.certificate))
        daemon = Daemon(storaged_binary, folder, [free_port()], free_port(), free_port(), tls=tls)
        made.append(daemon)
        daemon.start()
    yield made
    for daemon in made:
        daemon.release()
