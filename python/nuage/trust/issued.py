"""The certificates of a site that may still be good, and whose they are.

A daemon renews its certificate at half its life, so it may hold several that are good at once, and
a thief may hold an earlier one. To revoke a node is to revoke all of them: so each is written down
before it is given out, and forgotten once it has expired.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509

from nuage.channel.identity import Identity
from nuage.ids import NodeId
from nuage.trust.files import write_atomically
from nuage.trust.pki import SKEW_S, not_after_s

ISSUED: Final = "site/issued.json"


class IssuedOnce(msgspec.Struct, frozen=True):
    """One certificate; serials are hexadecimal, for JSON has no integers of 160 bits."""

    serial: str
    node_id: NodeId
    identity: str
    not_after_s: float


class IssuedCertificates:
    """The list on disk. One writer: the controller that holds the site's authority."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, certificate: x509.Certificate, identity: Identity, *, now_s: float) -> None:
        """Write a certificate down; durable on return, so that it may be given out."""
        entry = IssuedOnce(
            serial=f"{certificate.serial_number:x}",
            node_id=identity.node_id,
            identity=str(identity),
            not_after_s=not_after_s(certificate),
        )
        kept = [known for known in self._read() if known.not_after_s + SKEW_S > now_s]
        write_atomically(self._path, msgspec.json.encode([*kept, entry]))

    def serials_of(self, node_id: NodeId) -> frozenset[int]:
        """Return the serial numbers of everything that a node may still show, in any role."""
        return frozenset(int(e.serial, 16) for e in self._read() if e.node_id == node_id)

    def _read(self) -> Iterable[IssuedOnce]:
        if not self._path.exists():
            return ()
        return msgspec.json.decode(self._path.read_bytes(), type=list[IssuedOnce])
