"""The REST API from the command line: plain blocking calls over HTTPS or a Unix socket."""

import http.client
import json
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import IO, Any, Final
from urllib.parse import quote, urlencode, urlsplit

from nuage.errors import InvalidRequest, NoCandidate, NuageError, Unauthenticated, Unavailable

TIMEOUT_S: Final = 60.0
SLOW_S: Final = 2.0  # an answer that takes longer is one that somebody wonders about
CHUNK_BYTES: Final = 1024 * 1024

Json = object
Progress = Callable[[int], None]


class ApiError(NuageError):
    """What the API refused; `site` is who refused, `document` its whole error."""

    def __init__(self, document: Mapping[str, object], site: str, status: int) -> None:
        super().__init__(str(document.get("message", "")), hint=str(document.get("hint", "")))
        self.document = document
        self.site = site
        self.status = status
        self.field = str(document.get("field", ""))


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _refusal(status: int, error: Mapping[str, Any], site: str) -> NuageError:
    """Return what the API refused as the error that it was there."""
    message, hint = str(error.get("message", "")), str(error.get("hint", ""))
    if status == 401:
        return Unauthenticated(message, hint=hint)
    if "refusals" in error:
        refusals = [(r["candidate"], r["rule"], r["reason"]) for r in error["refusals"]]
        return NoCandidate(message, refusals=refusals, hint=hint)
    return ApiError(error, site, status)


def _asked(path: str, query: dict[str, object]) -> str:
    asked = {k: v for k, v in query.items() if v not in (None, "")}
    return f"{path}?{urlencode(asked)}" if asked else path


class Client:
    """One API endpoint, with or without a token."""

    def __init__(
        self, endpoint: str, *, token: str = "", ca_file: str = "", timeout_s: float = TIMEOUT_S
    ) -> None:
        self.endpoint = endpoint
        self.token = token
        self.ca_file = ca_file
        self._timeout_s = timeout_s
        self.renew: Callable[[], str] | None = None
        self.slow: Callable[[], None] | None = None  # called once an answer takes long, in a thread

    def log_in(self, name: str, secret: str) -> str:
        """Get a token for a user, keep it for later calls, return it."""
        answer = self.call("POST", "/v1/tokens", {"name": name, "secret": secret})
        assert isinstance(answer, dict)
        self.token = str(answer["token"])
        return self.token

    def get(self, path: str, **query: object) -> Json:
        """Read; query values that are None or "" are left out."""
        return self.call("GET", _asked(path, query))

    def delete(self, path: str, **query: object) -> Json:
        """Delete; what is meant stands in the query, as it does when reading."""
        return self.call("DELETE", _asked(path, query))

    def call(self, verb: str, path: str, body: object = None) -> Json:
        """Do one request and return its result.

        Raises:
            ApiError: the API refused; field and hint are its own.
            Unavailable: the endpoint cannot be reached.
        """
        try:
            return self._call(verb, path, body)
        except Unauthenticated:
            if self.renew is None:
                raise
            self.token = self.renew()
            return self._call(verb, path, body)

    def _call(self, verb: str, path: str, body: object) -> Json:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if data is not None else {}
        with self._wondering():
            response = self._send(verb, path, data, headers)
            answer = response.read()
        return self._result(response.status, answer)

    @contextmanager
    def _wondering(self) -> Iterator[None]:
        if self.slow is None:
            yield
            return
        timer = Timer(SLOW_S, self.slow)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _send(
        self, verb: str, path: str, data: object, headers: dict[str, str], **options: bool
    ) -> http.client.HTTPResponse:
        connection = self._connect()
        headers["Connection"] = "close"  # one request each: the socket goes with its answer
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            connection.request(verb, quote(path, safe="/?&=%-_.~:"), data, headers, **options)  # type: ignore[arg-type]
            return connection.getresponse()
        except ssl.SSLCertVerificationError as error:
            connection.close()
            raise Unavailable(
                f"{self.endpoint} shows a certificate that is not believed: {error.verify_message}",
                hint="--ca-file of `nuage login` names the federation's root certificate",
            ) from error
        except OSError as error:
            connection.close()
            raise Unavailable(
                f"{self.endpoint} cannot be reached: {error}",
                hint="is the site up? `nuage lab status` tells for a lab",
            ) from error

    def _connect(self) -> http.client.HTTPConnection:
        if self.endpoint.startswith("unix:"):
            return _UnixConnection(self.endpoint.removeprefix("unix:"), self._timeout_s)
        parts = urlsplit(self.endpoint)
        if parts.scheme != "https" or not parts.hostname:
            raise InvalidRequest(
                f"{self.endpoint!r} is not unix:/path or https://host:port", field="endpoint"
            )
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
        except OSError as error:  # ssl.SSLError among them
            raise InvalidRequest(
                f"{self.ca_file} is no certificate: {error}", field="ca_file"
            ) from None
        return http.client.HTTPSConnection(
            parts.hostname, parts.port or 443, timeout=self._timeout_s, context=context
        )

    def _result(self, status: int, data: bytes) -> Json:
        try:
            answer = json.loads(data)
        except ValueError:
            raise Unavailable(f"{self.endpoint} answers {status} without JSON") from None
        if "error" not in answer:
            return answer["result"]
        refusal = _refusal(status, answer["error"], str(answer.get("site", "")))
        refusal.request_id = str(answer.get("request_id", ""))
        raise refusal

    def download(self, path: str) -> bytes:
        """Return the bytes of a file that the API serves.

        Raises:
            ApiError: the API refused.
        """
        response = self._send("GET", path, None, {})
        data = response.read()
        if response.status >= 400:
            self._result(response.status, data)
        return data

    def upload(self, path: str, file: Path, progress: Progress) -> Json:
        """Send a file's bytes, telling how many were sent."""
        with file.open("rb") as handle:
            reader = _Reader(handle, progress)
            headers = {"Content-Length": str(file.stat().st_size)}
            response = self._send("PUT", path, reader, headers)
        return self._result(response.status, response.read())

    def stream(self, path: str) -> Iterator[Json]:
        """Follow server-sent events: yield each event's data, without end.

        Raises:
            Unavailable: it broke off, or the site, which is never silent for long, is not heard.
        """
        response = self._send("GET", path, None, {"Accept": "text/event-stream"})
        if response.status == 401 and self.renew is not None:
            self.token = self.renew()
            response = self._send("GET", path, None, {"Accept": "text/event-stream"})
        if response.status >= 400:
            self._result(response.status, response.read())
        try:
            for line in response:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])
        except (OSError, http.client.HTTPException, ValueError) as error:  # cut inside of a chunk
            raise Unavailable(f"{self.endpoint} is not heard any more: {error}") from error
        finally:
            response.close()
        raise Unavailable(f"{self.endpoint} is not heard any more: it hung up")


class _Reader:
    def __init__(self, handle: IO[bytes], progress: Progress) -> None:
        self._handle = handle
        self._progress = progress
        self._sent_bytes = 0

    def read(self, size: int = CHUNK_BYTES) -> bytes:
        data = self._handle.read(max(size, CHUNK_BYTES))
        self._sent_bytes += len(data)
        self._progress(self._sent_bytes)
        return data
