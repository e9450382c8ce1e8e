"""A lean HTTP/1.1 client for load: one keep-alive connection, one request at a time.

Written by hand so that on a machine with two cores the load costs little of what is measured.
"""

import asyncio
import ssl
from dataclasses import dataclass

import msgspec


@dataclass(frozen=True)
class Answer:
    """Status and decoded document of a response."""

    status: int
    document: dict[str, object]


class Connection:
    """One keep-alive connection to ``unix:/path`` or ``https://host:port``."""

    def __init__(self, endpoint: str, *, ca_file: str = "") -> None:
        self.endpoint = endpoint
        self.token = ""
        self._ca_file = ca_file
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        """Connect."""
        if self.endpoint.startswith("unix:"):
            path = self.endpoint.removeprefix("unix:")
            self._reader, self._writer = await asyncio.open_unix_connection(path)
            return
        host, _, port = self.endpoint.removeprefix("https://").rpartition(":")
        context = ssl.create_default_context(cafile=self._ca_file or None)
        self._reader, self._writer = await asyncio.open_connection(host, int(port), ssl=context)

    async def log_in(self, name: str, secret: str) -> str:
        """Get a token and use it from now on."""
        answer = await self.ask("POST", "/v1/tokens", {"name": name, "secret": secret})
        result = answer.document["result"]
        assert isinstance(result, dict), answer
        self.token = str(result["token"])
        return self.token

    async def ask(self, verb: str, path: str, body: object = None) -> Answer:
        """Send one request and return its answer."""
        data = b"" if body is None else msgspec.json.encode(body)
        return await self.send(verb, path, data)

    async def send(self, verb: str, path: str, data: bytes) -> Answer:
        """Send bytes as the body of one request and return its answer."""
        assert self._reader is not None
        assert self._writer is not None
        authorization = f"Authorization: Bearer {self.token}\r\n" if self.token else ""
        head = (
            f"{verb} {path} HTTP/1.1\r\nHost: api\r\n{authorization}"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        self._writer.write(head.encode() + data)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        status = int(lines[0].split(b" ", 2)[1])
        length = 0
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        answer = await self._reader.readexactly(length)
        return Answer(status, msgspec.json.decode(answer, type=dict[str, object]))

    async def close(self) -> None:
        """Close the connection."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
