"""An NBD client that knows nothing of retries: what it has no answer for is not known to be done.

Fixed newstyle handshake, simple replies; of the NBD protocol document only what a test needs.
"""

import socket
import struct
from pathlib import Path

OPTION_MAGIC = 0x49484156454F5054  # IHAVEOPT
REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC, ANSWER_MAGIC = 0x25609513, 0x67446698
FIXED_NEWSTYLE, NO_ZEROES = 1, 2
OPTION_GO, REPLY_ACK, REPLY_INFO = 7, 1, 3
READ, WRITE, FLUSH = 0, 1, 3


class NotServed(Exception):
    """The door did not let us in, or answered with an error number."""


class NbdClient:
    """One connection to an export; any `OSError` or `NotServed` leaves it of no more use."""

    def __init__(self, door: Path, export: str, timeout_s: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(door))
            self._greet(export)
        except (OSError, NotServed):
            self._socket.close()
            raise

    def _greet(self, export: str) -> None:
        magic, option_magic, _ = struct.unpack(">8sQH", self._take(18))
        assert (magic, option_magic) == (b"NBDMAGIC", OPTION_MAGIC)
        name = export.encode()
        data = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        go = struct.pack(">QII", OPTION_MAGIC, OPTION_GO, len(data)) + data
        self._socket.sendall(struct.pack(">I", FIXED_NEWSTYLE | NO_ZEROES) + go)
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self._take(20))
            assert magic == REPLY_MAGIC
            self._take(length)
            if kind == REPLY_ACK:
                return
            if kind != REPLY_INFO:
                raise NotServed(f"option reply {kind:#x}")

    def _take(self, length: int) -> bytes:
        pieces = []
        while length:
            piece = self._socket.recv(length)
            if not piece:
                raise ConnectionResetError("the door hung up")
            pieces.append(piece)
            length -= len(piece)
        return b"".join(pieces)

    def _ask(self, command: int, offset: int, length: int, data: bytes = b"") -> None:
        head = struct.pack(">IHHQQI", REQUEST_MAGIC, 0, command, 1, offset, length)
        self._socket.sendall(head + data)
        magic, error, cookie = struct.unpack(">IIQ", self._take(16))
        assert (magic, cookie) == (ANSWER_MAGIC, 1)
        if error:
            raise NotServed(f"error {error}")

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the export."""
        self._ask(READ, offset, length)
        return self._take(length)

    def write(self, offset: int, data: bytes) -> None:
        """Write; returns once it is answered."""
        self._ask(WRITE, offset, len(data), data)

    def flush(self) -> None:
        """Return once all that was answered before is durable."""
        self._ask(FLUSH, 0, 0)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
