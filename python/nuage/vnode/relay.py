"""The process that carries guests' iSCSI to storage at other sites, over TLS.

It is the node's: one for all guests, of a user of its own, with the node's certificate. It outlives
the agent, as guests do, and is found again by its control socket. Whoever is led to it by the
packet filter and asked for a portal that it was told of is carried there. Between its end and its
next start, which the agent sees to, connections wait as for a portal that does not answer.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog

from nuage.channel import parse_address
from nuage.errors import Unavailable
from nuage.trust.copies import GROUP, TrustCopies
from nuage.vnode import process

PORT_FIRST: Final = 29_000  # above the storage daemons', below what the kernel gives out
PORTS: Final = 100
USER: Final = 409_999  # the last before the guests'
START_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 2.0  # it answers within its turn
POLL_S: Final = 0.01
LOG_BYTES_MAX: Final = 1024 * 1024  # a line or two for each connection
log: Final = structlog.get_logger("relay")


class Way(msgspec.Struct, frozen=True):
    """Where a portal is served: over TLS by a node, or in clear where none is named."""

    address: str
    node: str = ""


class _Orders(msgspec.Struct, frozen=True):
    ways: Mapping[str, Way]
    patient: list[str]


class _Answer(msgspec.Struct, frozen=True):
    waiting: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayOptions:
    """How this node runs its relay; `own_user` takes root."""

    binary: str
    folder: Path
    key: Path
    chain: Path
    root: Path
    lists: Path
    own_user: bool


def tls_door_of(portal: str) -> str:
    """Return where a storage daemon takes TLS: at the port after its portal's."""
    host, port = parse_address(portal)
    return f"{host}:{port + 1}"


class Relay:
    """The relay of this node and our word to it."""

    def __init__(self, options: RelayOptions) -> None:
        self._options = options
        files = (options.key, options.chain, options.root, options.lists)
        user = USER if options.own_user else os.geteuid()
        self._trust = TrustCopies(options.folder, files, user)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.pid = 0  # 0: an earlier agent started it
        self.port = 0  # where it listens, once it was started

    async def tell(self, ways: Mapping[str, Way], patient: frozenset[str]) -> frozenset[str]:
        """Tell it all ways, and whose guests rather wait; return the ports of those that wait.

        A relay that does not run is started. What fails is tried again with the next word.
        """
        orders = msgspec.json.encode(_Orders(ways=ways, patient=sorted(patient))) + b"\n"
        for is_last in (False, True):
            try:
                return await self._say(orders)
            except asyncio.CancelledError:
                self._hang_up()  # an answer would be taken for the next one's
                raise
            except (OSError, TimeoutError, msgspec.MsgspecError, Unavailable) as error:
                self._hang_up()
                if is_last:
                    log.warning("relay does not answer", error=str(error))
        return frozenset()

    async def _say(self, orders: bytes) -> frozenset[str]:
        if self._streams is None or self._streams[0].at_eof():
            self._hang_up()
            await self._start()
        assert self._streams is not None
        self._trust.refresh()
        reader, writer = self._streams
        writer.write(orders)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            line = await reader.readline()
        answer = msgspec.json.decode(line, type=_Answer)
        return frozenset(str(port) for port in answer.waiting)

    def _hang_up(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def close(self) -> None:
        """Let go of it; it goes on."""
        self._hang_up()

    async def _start(self) -> None:
        """Find the running relay or start one."""
        folder = self._options.folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if await self._connect():
            return
        self._trust.refresh()
        if self.pid:
            process.reap(self.pid)
        port = self._free_port()
        (folder / "control").unlink(missing_ok=True)
        self._bound_log()
        self.pid = process.launch(
            self._command(port), folder=folder, log=folder / "relay.log",
            pass_fds=(), user=0, groups=(), environment={},
        )  # fmt: skip
        (folder / "port").write_text(str(port))
        deadline_s = asyncio.get_running_loop().time() + START_TIMEOUT_S
        while not await self._connect():
            has_ended = process.reap(self.pid)
            if has_ended or asyncio.get_running_loop().time() > deadline_s:
                raise Unavailable(f"the relay does not come up; {folder}/relay.log says why")
            await asyncio.sleep(POLL_S)

    def _command(self, port: int) -> list[str]:
        options = self._options
        user = ["--uid", str(USER), "--gid", str(GROUP)] if options.own_user else []
        return [
            options.binary,
            "--listen", f"127.0.0.1:{port}",
            "--control", "control",  # it works in its folder, and need not pass those above
            "--tls-key", options.key.name,
            "--tls-cert", options.chain.name,
            "--tls-ca", options.root.name,
            "--tls-crl", options.lists.name,
            *user,
        ]  # fmt: skip

    def _free_port(self) -> int:
        """Return the port of the relay before, whose rules may still stand, or one that is free."""
        ports: list[int] = [*range(PORT_FIRST, PORT_FIRST + PORTS)]
        with contextlib.suppress(OSError, ValueError):
            ports.insert(0, int((self._options.folder / "port").read_text()))
        for port in ports:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                with contextlib.suppress(OSError):
                    probe.bind(("127.0.0.1", port))
                    return port
        raise Unavailable("no port is left for the relay")

    def _bound_log(self) -> None:
        """Begin the log anew once it is long."""
        with contextlib.suppress(OSError):
            path = self._options.folder / "relay.log"
            if path.stat().st_size > LOG_BYTES_MAX:
                path.unlink()

    async def _connect(self) -> bool:
        folder = os.open(self._options.folder, os.O_PATH | os.O_DIRECTORY)
        try:
            self._streams = await asyncio.open_unix_connection(f"/proc/self/fd/{folder}/control")
            self.port = int((self._options.folder / "port").read_text())
        except (OSError, ValueError):
            return False
        finally:
            os.close(folder)
        return True
