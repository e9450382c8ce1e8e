"""From where a node's storage daemons take iSCSI in clear: their own site.

That is the networks in which the node itself has its address, the other nodes of its site, and what
the operator named. From everywhere else initiators come over TLS, or not at all.
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import structlog

from nuage.errors import NuageError
from nuage.tool import interfaces_with
from nuage.trust.files import write_atomically

log: Final = structlog.get_logger("nearby")


async def own_networks(address: str) -> tuple[str, ...]:
    """Return the networks in which this machine has `address`; none where it cannot be told."""
    with contextlib.suppress(NuageError):
        interfaces = await interfaces_with(address)
        return tuple(sorted({network for each in interfaces for network in each.networks}))
    return ()


class Nearby:
    """The file that the node's daemons read."""

    def __init__(self, path: Path, named: Iterable[str]) -> None:
        self.path = path
        self._own = tuple(named)
        self._neighbours: tuple[str, ...] | None = None

    async def open(self, address: str) -> None:
        """Find out the node's networks; an earlier file stands until the site's nodes are heard."""
        self._own = (*await own_networks(address), *self._own)
        if not self.path.exists():
            self._write(())

    def take(self, neighbours: tuple[str, ...]) -> None:
        """Take in the addresses of the site's nodes."""
        if neighbours != self._neighbours:
            self._neighbours = neighbours
            self._write(neighbours)

    def _write(self, neighbours: Iterable[str]) -> None:
        lines = sorted({*self._own, *neighbours} - {""})
        text = "".join(f"{line}\n" for line in lines).encode()
        if not self.path.exists() or self.path.read_bytes() != text:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, text)
            self.path.chmod(0o644)  # daemons are users of their own
            log.info("clear iSCSI from", networks=lines)
