"""What an agent knows of trust: told by its controller, checked against the root, kept on disk.

An agent that is cut off goes on with what it last knew. Beside the documents lies
``revocations.pem``, every revocation list known here: storage daemons read it for their links.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog

from nuage.channel import ChannelClient, Peer
from nuage.errors import NuageError, Unavailable
from nuage.model.trust import SiteTrust
from nuage.trust.book import TrustBook
from nuage.trust.files import write_atomically
from nuage.trust.store import TrustStore

TRUST_STREAM: Final = "trust.documents"
DOCUMENTS: Final = "known.json"
REVOCATIONS: Final = "revocations.pem"
log = structlog.get_logger("trust")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustWish:
    """What every site has published, as an agent is to know it."""

    revision: int
    documents: tuple[SiteTrust, ...]


class AgentTrust:
    """The book of one agent."""

    def __init__(self, store: TrustStore) -> None:
        self._directory = store.directory
        self._book = TrustBook(store.root())
        self.admit = self._book.revocations.admit
        path = self._directory / DOCUMENTS
        kept: tuple[SiteTrust, ...] = ()
        if path.exists():
            kept = msgspec.json.decode(path.read_bytes(), type=tuple[SiteTrust, ...])
        # Also when there are none: daemons may start before we are told.
        self._write_lists([document for document in kept if self._take(document)])

    @property
    def list_file(self) -> Path:
        """Return the file with every revocation list known here, one after the other."""
        return self._directory / REVOCATIONS

    def take(self, wish: TrustWish, client: ChannelClient) -> None:
        """Take in what the controller told; leave it when it is revoked itself."""
        believed = [document for document in wish.documents if self._take(document)]
        write_atomically(self._directory / DOCUMENTS, msgspec.json.encode(wish.documents))
        self._write_lists(believed)
        for peer in self._book.revocations.to_drop(_peers_of(client)):
            peer.close("revoked")

    def _take(self, document: SiteTrust) -> bool:
        """Take a document in, and return whether the root's signature stands behind it."""
        try:
            self._book.take(document)
        except NuageError as error:
            log.error("trust refused", of=document.site_id, error=error.message)
            return False
        return True

    def _write_lists(self, documents: Sequence[SiteTrust]) -> None:
        """Write the lists down for daemons; they look whether the file is another one."""
        lists = [document.revocations_pem for document in documents]
        lists += [document.root_revocations_pem for document in documents]
        text = "".join(lists).encode()
        if not self.list_file.exists() or self.list_file.read_bytes() != text:
            write_atomically(self.list_file, text)


def _peers_of(client: ChannelClient) -> tuple[Peer, ...]:
    try:
        return (client.peer,)
    except Unavailable:
        return ()
