"""etcd's v3 API as its JSON gateway writes it (etcd 3.4, `rpc.proto`).

Keys and values are base64, 64-bit integers are strings; both sides of that are here. A
missing field is its zero.
"""

from base64 import b64encode
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias, assert_never

import msgspec


class KeyValue(msgspec.Struct, frozen=True):
    """A stored key. `lease` 0: bound to none. `version` counts the puts since it was made."""

    key: bytes = b""
    value: bytes = b""
    mod_revision: int = 0
    version: int = 0
    lease: int = 0


class Header(msgspec.Struct, frozen=True):
    """Who answered, at which revision of the whole store."""

    member_id: int = 0
    revision: int = 0


class RangeResult(msgspec.Struct, frozen=True):
    """The keys found; `more` when a limit cut them."""

    header: Header = Header()
    kvs: tuple[KeyValue, ...] = ()
    more: bool = False
    count: int = 0


class OpResult(msgspec.Struct, frozen=True):
    """The answer to one operation of a transaction; only ranges carry something."""

    response_range: RangeResult | None = None


class TxnResult(msgspec.Struct, frozen=True):
    """Which branch ran, and what its operations answered, in order."""

    header: Header = Header()
    succeeded: bool = False
    responses: tuple[OpResult, ...] = ()

    def kvs(self, index: int) -> tuple[KeyValue, ...]:
        """Return what the `index`-th operation, a range, found."""
        found = self.responses[index].response_range
        return found.kvs if found is not None else ()


class Lease(msgspec.Struct, frozen=True):
    """A lease as granted or renewed; `ttl_s` 0 or less: there is none any more."""

    header: Header = Header()
    id: int = msgspec.field(default=0, name="ID")
    ttl_s: int = msgspec.field(default=0, name="TTL")


class KeepAlive(msgspec.Struct, frozen=True):
    """The stream's envelope around a renewal."""

    result: Lease = Lease()


class Member(msgspec.Struct, frozen=True):
    """A member of the cluster; `name` is "" until it has started once."""

    id: int = msgspec.field(default=0, name="ID")
    name: str = ""
    peer_urls: tuple[str, ...] = msgspec.field(default=(), name="peerURLs")
    client_urls: tuple[str, ...] = msgspec.field(default=(), name="clientURLs")


class MemberList(msgspec.Struct, frozen=True):
    """The members, after an addition with the `member` that was added."""

    header: Header = Header()
    members: tuple[Member, ...] = ()
    member: Member | None = None


class EventType(Enum):
    """What happened to a key."""

    PUT = "PUT"
    DELETE = "DELETE"


class KeyEvent(msgspec.Struct, frozen=True):
    """One change of a key; for a deletion `kv` has the key and the revision only."""

    kv: KeyValue
    type: EventType = EventType.PUT


class WatchResult(msgspec.Struct, frozen=True):
    """One message of a watch."""

    header: Header = Header()
    canceled: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""
    events: tuple[KeyEvent, ...] = ()


class WatchFailure(msgspec.Struct, frozen=True):
    """Why the gateway ended a stream."""

    message: str = ""


class WatchEnvelope(msgspec.Struct, frozen=True):
    """One line of a watch's stream."""

    result: WatchResult | None = None
    error: WatchFailure | None = None


class Failure(msgspec.Struct, frozen=True):
    """The gateway's refusal; `code` is gRPC's."""

    message: str = ""
    code: int = 0


class CompareTarget(Enum):
    """What of a key is compared, and the field that carries the value."""

    VERSION = "version"
    CREATE = "create_revision"
    MOD = "mod_revision"
    VALUE = "value"


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition of a transaction: the target of `key` equals `value`."""

    key: bytes
    target: CompareTarget
    value: int | bytes


def absent(key: bytes) -> Compare:
    """Return the condition that `key` does not exist."""
    return Compare(key, CompareTarget.VERSION, 0)


def unchanged(kv: KeyValue) -> Compare:
    """Return the condition that the key is still as it was read."""
    return Compare(kv.key, CompareTarget.MOD, kv.mod_revision)


@dataclass(frozen=True, slots=True)
class PutOp:
    """Store a key; `lease` 0 binds it to none."""

    key: bytes
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class DeleteOp:
    """Delete a key, or all in [key, range_end)."""

    key: bytes
    range_end: bytes = b""


@dataclass(frozen=True, slots=True)
class RangeOp:
    """Read a key, or up to `limit` (0: all) in [key, range_end)."""

    key: bytes
    range_end: bytes = b""
    limit: int = 0


Op: TypeAlias = PutOp | DeleteOp | RangeOp
Document: TypeAlias = "dict[str, str | int | bool | Document | list[Document] | list[str]]"

_TARGETS: Final = {
    CompareTarget.VERSION: "VERSION",
    CompareTarget.CREATE: "CREATE",
    CompareTarget.MOD: "MOD",
    CompareTarget.VALUE: "VALUE",
}


def b64(data: bytes) -> str:
    """Return `data` as the gateway writes bytes."""
    return b64encode(data).decode("ascii")


def prefix_end(prefix: bytes) -> bytes:
    """Return the end of the range of all keys that begin with `prefix`."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else b"\x00"


def compare_document(compare: Compare) -> Document:
    """Return a compare as the gateway reads it."""
    value = b64(compare.value) if isinstance(compare.value, bytes) else str(compare.value)
    return {
        "key": b64(compare.key),
        "target": _TARGETS[compare.target],
        "result": "EQUAL",
        compare.target.value: value,
    }


def op_document(op: Op) -> Document:
    """Return an operation as the gateway reads it."""
    match op:
        case PutOp():
            put: Document = {"key": b64(op.key), "value": b64(op.value), "lease": str(op.lease)}
            return {"requestPut": put}
        case DeleteOp():
            delete: Document = {"key": b64(op.key), "range_end": b64(op.range_end)}
            return {"requestDeleteRange": delete}
        case RangeOp():
            read: Document = {
                "key": b64(op.key), "range_end": b64(op.range_end), "limit": str(op.limit),
            }  # fmt: skip
            return {"requestRange": read}
        case _:
            assert_never(op)
