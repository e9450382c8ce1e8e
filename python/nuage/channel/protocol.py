"""Where a TLS connection becomes a Peer: reads the certificate, admits or refuses.

Uses asyncio's Protocol rather than its streams: no reader task, no copy, no await per frame.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Final

import structlog

from nuage.channel.handlers import Handlers
from nuage.channel.identity import Admission, Identity, parse_identity
from nuage.channel.peer import Peer
from nuage.clock import Clock
from nuage.errors import Forbidden, NuageError, Unauthenticated

WRITE_HIGH_WATER_BYTES: Final = 1024 * 1024  # above it callers and streams wait
HANDSHAKE_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 2.0  # for TLS to say goodbye to a peer that may be gone

log: Final = structlog.get_logger("nuage.channel")


def identity_of(ssl_object: ssl.SSLObject) -> tuple[Identity, bytes]:
    """Return who the verified peer is, and its certificate.

    Raises:
        Unauthenticated: its certificate names no identity, or more than one.
    """
    certificate = ssl_object.getpeercert()
    der = ssl_object.getpeercert(binary_form=True)
    if not certificate or der is None:
        raise Unauthenticated("the peer showed no certificate that could be verified")
    names = certificate.get("subjectAltName", ())
    uris = [str(entry[1]) for entry in names if entry[0] == "URI"]
    if len(uris) != 1:
        raise Unauthenticated(f"the peer's certificate names {len(uris)} identities, not one")
    identity = parse_identity(uris[0])
    if [entry[1] for entry in names if entry[0] == "DNS"] != [identity.dns_name]:
        raise Unauthenticated(f"the certificate of {identity} has another DNS name")
    return identity, der


class ChannelProtocol(asyncio.Protocol):
    """Makes one Peer of one connection and passes bytes on."""

    def __init__(
        self,
        *,
        handlers: Handlers,
        clock: Clock,
        admit: Admission,
        on_open: Callable[[Peer], None],
        on_closed: Callable[[Peer], None],
        on_refused: Callable[[NuageError], None],
    ) -> None:
        self._handlers = handlers
        self._clock = clock
        self._admit = admit
        self._on_open = on_open
        self._on_closed = on_closed
        self._on_refused = on_refused
        self.peer: Peer | None = None
        self._transport: asyncio.Transport | None = None
        self._lost = asyncio.Event()

    async def wait_lost(self) -> None:
        """Wait until the transport has gone, after its close; abort it when that takes long."""
        if self._transport is None:
            return
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._lost.wait()
        except TimeoutError:
            self._transport.abort()
            await self._lost.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the peer that TLS has verified, or close."""
        stream: asyncio.Transport = transport  # type: ignore[assignment]  # uvloop's is not a subclass
        self._transport = stream
        try:
            identity, der = identity_of(stream.get_extra_info("ssl_object"))
            self._admit(identity, der)
        except NuageError as error:
            stream.abort()
            self._on_refused(error)
            return
        stream.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        self.peer = Peer(
            identity=identity,
            handlers=self._handlers,
            clock=self._clock,
            certificate_der=der,
            on_open=self._on_open,
            on_closed=self._on_closed,
        )
        self.peer.connection_made(stream)

    def data_received(self, data: bytes) -> None:
        """Pass bytes on; those of a refused peer go nowhere."""
        if self.peer is not None and not self.peer.is_closed:
            self.peer.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the peer."""
        self._lost.set()
        if self.peer is not None:
            self.peer.connection_lost(str(exc) if exc else "connection closed by peer")
        else:
            self._on_refused(Forbidden(f"the connection ended during the handshake: {exc}"))

    def pause_writing(self) -> None:
        """Pass it on."""
        if self.peer is not None:
            self.peer.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        if self.peer is not None:
            self.peer.resume_writing()
