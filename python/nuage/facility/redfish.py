"""Redfish over HTTPS: one connection per BMC or PDU, with its session, limits and trust.

Sessions follow DSP0266 §13.3.4: log in once, send `X-Auth-Token`, log in again when it has
expired. Requests that only read are repeated when the device did not answer; orders are
repeated only when they certainly never arrived. Answers are parsed into the few typed
fields that are used; anything else in them is the device's own business.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from nuage.clock import Clock
from nuage.errors import UNREADABLE, InvalidRequest, NotFound, RemoteProtocolError, TimedOut
from nuage.facility.ports import BmcNotTrusted, BmcRefused, BmcUnavailable

ROOT: Final = "/redfish/v1"
TIMEOUT_S: Final = 5.0  # a BMC's processor is slow, but not slower
READ_TRIES_MAX: Final = 3
RETRY_FIRST_S: Final = 0.2
ANSWER_BYTES_MAX: Final = 1024 * 1024
AT_ONCE_MAX: Final = 4  # BMCs fall over under more

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """How a device is known: by a certificate file, by a fingerprint, or by the system's CAs.

    `fingerprint` is the SHA-256 of the certificate in hexadecimal, colons allowed.
    """

    certificate: Path | None = None
    fingerprint: str = ""

    def ssl(self) -> ssl.SSLContext | aiohttp.Fingerprint:
        """Return what aiohttp checks with."""
        if self.fingerprint:
            try:
                return aiohttp.Fingerprint(bytes.fromhex(self.fingerprint.replace(":", "")))
            except ValueError as error:
                raise InvalidRequest(
                    f"{self.fingerprint!r} is not a SHA-256 fingerprint", field="fingerprint"
                ) from error
        return ssl.create_default_context(
            cafile=None if self.certificate is None else str(self.certificate)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """User and password of a BMC or PDU."""

    user: str
    password: str

    def __repr__(self) -> str:
        """Keep the password out of logs."""
        return f"Login(user={self.user!r}, password=…)"


class Link(msgspec.Struct, frozen=True):
    """A reference to another resource."""

    path: str = msgspec.field(name="@odata.id")


class Members(msgspec.Struct, frozen=True):
    """A collection."""

    members: tuple[Link, ...] = msgspec.field(name="Members")


class RedfishConnection:
    """A device's Redfish service. Close it when done, it holds a session there."""

    def __init__(
        self, url: str, login: Login, clock: Clock, *,
        trust: Trust | None = None, timeout_s: float = TIMEOUT_S,
    ) -> None:  # fmt: skip
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidRequest(f"{url!r} is not an http(s) URL", field="url")
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._login = login
        self._clock = clock
        self._timeout_s = timeout_s
        self._trust = (trust or Trust()).ssl() if parts.scheme == "https" else None
        self._http: aiohttp.ClientSession | None = None
        self._token = ""
        self._session_path = ""
        self._login_lock = asyncio.Lock()
        self._at_once = asyncio.Semaphore(AT_ONCE_MAX)

    async def __aenter__(self) -> "RedfishConnection":
        """Return itself; nothing is sent before it is asked for."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Log out and close."""
        await self.close()

    async def close(self) -> None:
        """Log out, if logged in and the device listens, and close the connection."""
        if self._http is None:
            return
        if self._session_path:
            # A device that does not listen lets the session expire by itself.
            with contextlib.suppress(BmcUnavailable, BmcNotTrusted, TimedOut):
                await self._exchange("DELETE", self._session_path, None)
        await self._http.close()
        self._http = None

    async def get(self, path: str, kind: type[T]) -> T:
        """Return the resource at `path` parsed as `kind`, trying again when nobody answers.

        Raises:
            NotFound: the device has no such resource.
            BmcUnavailable, BmcRefused, BmcNotTrusted: see there.
            RemoteProtocolError: what came is not Redfish as we know it.
        """
        delay_s = RETRY_FIRST_S
        for remaining in reversed(range(READ_TRIES_MAX)):
            try:
                body = await self._request("GET", path, None)
                break
            except (BmcUnavailable, TimedOut) as error:
                if not remaining:
                    doing = f"GET {path}, tried {READ_TRIES_MAX} times"
                    raise BmcUnavailable(self.url, doing=doing) from error
            await self._clock.sleep(delay_s)
            delay_s *= 2
        try:
            return msgspec.json.decode(body, type=kind)
        except UNREADABLE as error:
            raise RemoteProtocolError(f"{self.url}{path} is not as expected: {error}") from error

    async def post(self, path: str, body: Mapping[str, object]) -> None:
        """Give an order; TimedOut means that it may have been obeyed."""
        await self._request("POST", path, body)

    async def patch(self, path: str, body: Mapping[str, object]) -> None:
        """Change a resource; TimedOut means that it may have been changed."""
        await self._request("PATCH", path, body)

    async def _request(self, method: str, path: str, body: Mapping[str, object] | None) -> bytes:
        async with self._at_once:
            if not self._token:
                await self._log_in("")
            used = self._token
            status, answer = await self._exchange(method, path, body)
            if status == 401:
                await self._log_in(used)
                status, answer = await self._exchange(method, path, body)
        self._judge(status, answer, f"{method} {path}")
        return answer

    async def _log_in(self, expired: str) -> None:
        async with self._login_lock:
            if self._token != expired:
                return  # somebody else logged in meanwhile
            self._token = ""
            credentials = {"UserName": self._login.user, "Password": self._login.password}
            status, answer = await self._exchange(
                "POST", f"{ROOT}/SessionService/Sessions", credentials
            )
            self._judge(status, answer, "login")
            if not self._token:
                raise RemoteProtocolError(f"{self.url} logged us in without an X-Auth-Token")

    async def _exchange(
        self, method: str, path: str, body: Mapping[str, object] | None
    ) -> tuple[int, bytes]:
        """Send one request and take the answer; remember a session that comes with it."""
        http = self._client()
        headers = {"X-Auth-Token": self._token} if self._token else {}
        doing = f"{method} {path}"
        try:
            async with http.request(method, self.url + path, json=body, headers=headers) as answer:
                data = await answer.content.read(ANSWER_BYTES_MAX + 1)
                while len(data) <= ANSWER_BYTES_MAX and not answer.content.at_eof():
                    data += await answer.content.read(ANSWER_BYTES_MAX + 1 - len(data))
                if token := answer.headers.get("X-Auth-Token"):
                    self._token = token
                    self._session_path = urlsplit(answer.headers.get("Location", "")).path
        except (
            aiohttp.ClientConnectorCertificateError,
            aiohttp.ServerFingerprintMismatch,
        ) as error:
            raise BmcNotTrusted(self.url, reason=_why(error)) from error
        except aiohttp.ClientConnectorError as error:
            raise BmcUnavailable(self.url, doing=f"{doing}: {_why(error)}") from error
        except TimeoutError as error:
            raise TimedOut(f"{doing} at {self.url}", after_s=self._timeout_s) from error
        except aiohttp.ClientError as error:
            # The connection broke in the middle: an order may have been obeyed.
            if method == "GET":
                raise BmcUnavailable(self.url, doing=f"{doing}: {_why(error)}") from error
            raise TimedOut(f"{doing} at {self.url}: {_why(error)}", after_s=0.0) from error
        if len(data) > ANSWER_BYTES_MAX:
            raise RemoteProtocolError(
                f"{self.url}{path} answers with over {ANSWER_BYTES_MAX} bytes"
            )
        return answer.status, data

    def _client(self) -> aiohttp.ClientSession:
        if self._http is None:
            connector = aiohttp.TCPConnector(ssl=True if self._trust is None else self._trust)
            self._http = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                headers={"Accept": "application/json", "OData-Version": "4.0"},
            )
        return self._http

    def _judge(self, status: int, answer: bytes, doing: str) -> None:
        """Raise what a status means; nothing for success."""
        if status < 300:
            return
        if status in (401, 403):
            raise BmcRefused(self.url, doing=doing)
        if status == 404:
            raise NotFound("Redfish resource", f"{self.url} {doing}")
        if status in (429, 500, 502, 503, 504):
            raise BmcUnavailable(self.url, doing=f"{doing}: HTTP {status}")
        raise RemoteProtocolError(
            f"{self.url} refuses {doing} with HTTP {status}: {_message(answer)}"
        )


class _Info(msgspec.Struct, frozen=True):
    message: str = msgspec.field(name="Message", default="")


class _ErrorBody(msgspec.Struct, frozen=True):
    message: str = ""
    info: tuple[_Info, ...] = msgspec.field(name="@Message.ExtendedInfo", default=())


class _ErrorDocument(msgspec.Struct, frozen=True):
    error: _ErrorBody


def _message(answer: bytes) -> str:
    """Return what an error document says in words, or the beginning of what came instead."""
    try:
        error = msgspec.json.decode(answer, type=_ErrorDocument).error
    except UNREADABLE:
        return answer[:200].decode("utf-8", "replace")
    return "; ".join(info.message for info in error.info if info.message) or error.message


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
