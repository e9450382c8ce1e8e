"""The listening side of the channel: accepts daemons that the federation's CA vouches for."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Final
from weakref import WeakSet

import structlog

from nuage.channel.handlers import Handlers
from nuage.channel.identity import Admission, admit_all
from nuage.channel.peer import Peer
from nuage.channel.protocol import CLOSE_TIMEOUT_S, HANDSHAKE_TIMEOUT_S, ChannelProtocol
from nuage.clock import Clock
from nuage.errors import LocalProtocolError, NuageError
from nuage.ids import NodeId, SiteId
from nuage.model.infrastructure import NodeRole

BACKLOG: Final = 256  # all nodes of a site come back at once after a restart of the controller

log: Final = structlog.get_logger("nuage.channel")


class ChannelServer:
    """Listens, verifies, and keeps the peers that are connected now."""

    def __init__(
        self,
        ssl_context: ssl.SSLContext,
        handlers: Handlers,
        clock: Clock,
        *,
        admit: Admission = admit_all,
        on_peer: Callable[[Peer], None] | None = None,
        on_peer_lost: Callable[[Peer], None] | None = None,
    ) -> None:
        self._ssl_context = ssl_context
        self._handlers = handlers
        self._clock = clock
        self._admit = admit
        self._on_peer = on_peer
        self._on_peer_lost = on_peer_lost
        self._peers: dict[int, Peer] = {}
        self._protocols: WeakSet[ChannelProtocol] = WeakSet()
        self._server: asyncio.Server | None = None

    @property
    def peers(self) -> tuple[Peer, ...]:
        """Return the peers that are connected, oldest first."""
        return tuple(self._peers.values())

    def find_peers(
        self,
        *,
        site_id: SiteId | None = None,
        role: NodeRole | None = None,
        node_id: NodeId | None = None,
    ) -> tuple[Peer, ...]:
        """Return the connected peers whose identity has what is named, newest last."""
        return tuple(
            peer
            for peer in self._peers.values()
            if (site_id is None or peer.identity.site_id == site_id)
            and (role is None or peer.identity.role == role)
            and (node_id is None or peer.identity.node_id == node_id)
        )

    @property
    def port(self) -> int:
        """Return the port that the server listens on (of use when it was asked for port 0)."""
        if self._server is None or not self._server.sockets:
            raise LocalProtocolError("the server does not listen")
        return int(self._server.sockets[0].getsockname()[1])

    async def listen(self, host: str, port: int) -> None:
        """Begin to accept connections on `host`:`port`."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._protocol,
            host,
            port,
            ssl=self._ssl_context,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
            backlog=BACKLOG,
        )

    def drop(self, peers: tuple[Peer, ...], reason: str) -> None:
        """Close the channels to `peers`, for instance because they were revoked."""
        for peer in peers:
            peer.close(reason)

    async def close(self) -> None:
        """Stop listening and close every channel."""
        if self._server is None:
            return
        closing = asyncio.ensure_future(close_server(self._server))
        await asyncio.sleep(0)
        self.drop(self.peers, "the server stops")
        await asyncio.gather(*(protocol.wait_lost() for protocol in tuple(self._protocols)))
        await closing
        self.drop(self.peers, "the server stops")  # who came in just before the port closed

    def _protocol(self) -> ChannelProtocol:
        protocol = ChannelProtocol(
            handlers=self._handlers,
            clock=self._clock,
            admit=self._admit,
            on_open=self._opened,
            on_closed=self._closed,
            on_refused=self._refused,
        )
        self._protocols.add(protocol)  # forgotten by itself once asyncio has dropped it
        return protocol

    def _opened(self, peer: Peer) -> None:
        self._peers[id(peer)] = peer
        log.info("channel.peer_connected", peer=str(peer.identity))
        if self._on_peer is not None:
            self._on_peer(peer)

    def _closed(self, peer: Peer) -> None:
        if self._peers.pop(id(peer), None) is None:
            return
        log.info("channel.peer_lost", peer=str(peer.identity), reason=peer.close_reason)
        if self._on_peer_lost is not None:
            self._on_peer_lost(peer)

    def _refused(self, error: NuageError) -> None:
        log.warning("channel.peer_refused", error=error.message)


async def close_server(server: asyncio.Server) -> None:
    """Stop listening and wait a moment for connections that are still shaking hands.

    Up to Python 3.11 `wait_closed` returns at once unless it waits before the close.
    """
    waiting = asyncio.ensure_future(server.wait_closed())
    await asyncio.sleep(0)  # let it begin to wait
    server.close()
    await asyncio.wait({waiting}, timeout=CLOSE_TIMEOUT_S)
    waiting.cancel()
