"""SNMP on the wire, by pysnmp: versions 2c and 3, with limits on time, tries and walks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from pysnmp.hlapi.v3arch.asyncio import (
    CommunityData,
    ContextData,
    Integer32,
    ObjectIdentity,
    ObjectType,
    SnmpEngine,
    UdpTransportTarget,
    UsmUserData,
    bulk_walk_cmd,
    get_cmd,
    set_cmd,
    usmAesCfb128Protocol,
    usmHMAC192SHA256AuthProtocol,
)
from pysnmp.proto import errind
from pysnmp.proto.rfc1902 import ObjectName
from pysnmp.proto.rfc1905 import EndOfMibView, NoSuchInstance, NoSuchObject

from nuage.errors import RemoteProtocolError, TimedOut
from nuage.facility.ports import BmcRefused, BmcUnavailable

Value: TypeAlias = int | str

SNMP_PORT: Final = 161
TIMEOUT_S: Final = 2.0
RETRIES: Final = 2
WALK_ROWS_MAX: Final = 4000  # 54 outlets with 60 columns each
BULK_ROWS: Final = 20  # fits an unfragmented datagram
_WRONG_KEYS: Final = (
    errind.WrongDigest, errind.AuthenticationFailure, errind.DecryptionError,
    errind.UnknownUserName, errind.UnknownSecurityName, errind.UnsupportedSecurityLevel,
)  # fmt: skip
_REFUSALS: Final = frozenset({"noAccess", "authorizationError", "notWritable", "readOnly"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Community:
    """SNMP 2c's secret. It crosses the network in the clear: for closed networks only."""

    name: str

    def __repr__(self) -> str:
        """Keep the community out of logs."""
        return "Community(…)"


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """SNMP 3's user (authPriv: HMAC-SHA-256, AES-128)."""

    name: str
    authentication_key: str
    privacy_key: str

    def __repr__(self) -> str:
        """Keep the keys out of logs."""
        return f"User(name={self.name!r}, …)"


class PysnmpTransport:
    """SNMP to one device. Close it when done."""

    def __init__(
        self, host: str, credentials: Community | User, *, port: int = SNMP_PORT,
        timeout_s: float = TIMEOUT_S, retries: int = RETRIES, engine: SnmpEngine | None = None,
    ) -> None:  # fmt: skip
        self._host = host
        self._port = port
        self._timeout_s = timeout_s
        self._retries = retries
        # An engine takes over 0.1 s to make: a daemon gives all its PDUs one of its own.
        self._owns_engine = engine is None
        self._engine = engine or SnmpEngine()
        self._target: UdpTransportTarget | None = None
        if isinstance(credentials, Community):
            self._auth: CommunityData | UsmUserData = CommunityData(credentials.name, mpModel=1)
        else:
            self._auth = UsmUserData(
                credentials.name, credentials.authentication_key, credentials.privacy_key,
                authProtocol=usmHMAC192SHA256AuthProtocol, privProtocol=usmAesCfb128Protocol,
            )  # fmt: skip

    @property
    def url(self) -> str:
        """Return what names the device in errors."""
        return f"snmp://{self._host}:{self._port}"

    def close(self) -> None:
        """Close the socket, unless it is shared with others."""
        if self._owns_engine:
            self._engine.close_dispatcher()

    async def get(self, *oids: str) -> Mapping[str, Value]:
        """Return the values of those objects that exist."""
        objects = [ObjectType(ObjectIdentity(oid)) for oid in oids]
        failure, status, _, found = await get_cmd(
            self._engine, self._auth, await self._open(), ContextData(), *objects, lookupMib=False
        )
        self._judge(failure, status, f"get {', '.join(oids)}", is_order=False)
        return {str(name): _plain(value) for name, value in found if _exists(value)}

    async def walk(self, oid: str) -> Mapping[str, Value]:
        """Return all objects below `oid`."""
        values: dict[str, Value] = {}
        rows = bulk_walk_cmd(
            self._engine, self._auth, await self._open(), ContextData(), 0, BULK_ROWS,
            ObjectType(ObjectIdentity(oid)), lookupMib=False, lexicographicMode=False,
        )  # fmt: skip
        async for failure, status, _, found in rows:
            self._judge(failure, status, f"walk {oid}", is_order=False)
            for name, value in found:
                if _exists(value) and str(name).startswith(oid + "."):
                    values[str(name)] = _plain(value)
            if len(values) > WALK_ROWS_MAX:
                raise RemoteProtocolError(f"{self.url} has over {WALK_ROWS_MAX} objects in {oid}")
        return values

    async def set(self, oid: str, value: int) -> None:
        """Set an integer."""
        change = ObjectType(ObjectIdentity(oid), Integer32(value))
        failure, status, _, _ = await set_cmd(
            self._engine, self._auth, await self._open(), ContextData(), change, lookupMib=False
        )
        self._judge(failure, status, f"set {oid}", is_order=True)

    async def _open(self) -> UdpTransportTarget:
        if self._target is None:
            self._target = await UdpTransportTarget.create(
                (self._host, self._port), timeout=self._timeout_s, retries=self._retries
            )
        return self._target

    def _judge(self, failure: object, status: object, doing: str, *, is_order: bool) -> None:
        if isinstance(failure, _WRONG_KEYS):
            raise BmcRefused(self.url, doing=f"{doing}: {failure}")
        if failure:
            waited_s = self._timeout_s * (self._retries + 1)
            if is_order:
                raise TimedOut(f"{doing} at {self.url}: {failure}", after_s=waited_s)
            raise BmcUnavailable(self.url, doing=f"{doing}: {failure}")
        if status:
            name = status.prettyPrint() if isinstance(status, Integer32) else str(status)
            if name in _REFUSALS:
                raise BmcRefused(self.url, doing=doing)
            raise RemoteProtocolError(f"{self.url} answers {name} to {doing}")


def _exists(value: object) -> bool:
    return not isinstance(value, NoSuchObject | NoSuchInstance | EndOfMibView)


def _plain(value: object) -> Value:
    """Return an SNMP value as Python's."""
    if isinstance(value, ObjectName):
        return str(value)
    try:
        return int(value)  # type: ignore[call-overload,no-any-return]
    except (TypeError, ValueError):
        return str(value)
