"""Values as bytes: one encoding for the disk, for etcd and for feeds (docs/protocols/catalogue.md).

JSON, so that an operator can read a catalogue with the `sqlite3` shell when all else fails.
A field that is absent takes its default: older files and older sites stay readable.
"""

from typing import Final

import msgspec

from nuage.errors import UNREADABLE, CorruptData, InvalidRequest, NuageError
from nuage.model.record import KIND_OF, KINDS, Noun

_ENCODER: Final = msgspec.json.Encoder()
_DECODERS: Final = {kind: msgspec.json.Decoder(cls) for kind, (cls, _) in KINDS.items()}


def require_kind(kind: str) -> None:
    """Raise InvalidRequest unless a catalogue stores `kind`."""
    if kind not in KINDS:
        raise InvalidRequest(
            f"{kind!r} is not a kind; known are {', '.join(sorted(KINDS))}", field="kind"
        )


def kind_of(value: Noun) -> str:
    """Return the kind of a value.

    Raises:
        InvalidRequest: a catalogue does not store its class.
    """
    try:
        return KIND_OF[type(value)]
    except KeyError:
        raise InvalidRequest(
            f"a catalogue does not store {type(value).__name__}", field="value"
        ) from None


def id_of(value: Noun) -> str:
    """Return the id a value bears."""
    identifier: str = getattr(value, KINDS[kind_of(value)][1])
    return identifier


def epoch_of(value: Noun) -> int:
    """Return the epoch a value bears, 0 when its kind does not move."""
    epoch: int = getattr(value, "epoch", 0)
    return epoch


def bears_epoch(value: Noun) -> bool:
    """Tell whether the value carries its owner's epoch itself: it moves between sites."""
    return hasattr(value, "epoch")


def iaas_of(value: Noun) -> str:
    """Return the IaaS a value belongs to, "" when to none."""
    iaas_id: str | None = getattr(value, "iaas_id", None)
    return iaas_id or ""


def name_of(value: Noun) -> str:
    """Return the value's name, "" when it has none."""
    name: str = getattr(value, "name", "")
    return name


def encode_value(value: Noun) -> bytes:
    """Return the value as stored."""
    return _ENCODER.encode(value)


def decode_value(kind: str, body: bytes, *, where: str) -> Noun:
    """Return the value that `body` stands for.

    Raises:
        CorruptData: it stands for none of this kind; `where` names it.
    """
    try:
        return _DECODERS[kind].decode(body)
    except KeyError:
        raise CorruptData(f"unknown kind {kind!r}", where=where) from None
    except (*UNREADABLE, NuageError) as error:
        raise CorruptData(f"the body is no {kind}: {error}", where=where) from error
