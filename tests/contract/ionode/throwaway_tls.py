"""An IO-node's certificate in a federation that is good for one test."""

import time
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nuage.channel import Identity
from nuage.daemon.agent_trust import AgentTrust
from nuage.ids import FederationId, NodeId, SiteId
from nuage.model.infrastructure import NodeRole
from nuage.trust.pki import pem_of
from nuage.trust.store import DAEMON_CHAIN, DAEMON_KEY, ROOT, TrustStore

FEDERATION = FederationId("throwaway")
SITE = SiteId("marne")


@dataclass(frozen=True)
class TlsFiles:
    chain: Path
    key: Path
    root: Path
    lists: Path


def write_tls(directory: Path) -> TlsFiles:
    """Found a federation, and let one IO-node in."""
    now_s = time.time()
    founder = TrustStore(directory / "founder")
    controller = Identity(FEDERATION, SITE, NodeRole.CONTROLLER, NodeId("controller"))
    founder.found(controller, now_s=now_s)
    key = Ed25519PrivateKey.generate()
    ionode = Identity(FEDERATION, SITE, NodeRole.IONODE, NodeId("marne-io1"))
    chain_pem = founder.issue(key.public_key(), ionode, now_s=now_s)
    store = TrustStore(directory / "ionode")
    store.install(root_pem=pem_of(founder.root()), chain_pem=chain_pem, key=key)
    return TlsFiles(
        store.directory / DAEMON_CHAIN,
        store.directory / DAEMON_KEY,
        store.directory / ROOT,
        AgentTrust(store).list_file,
    )
