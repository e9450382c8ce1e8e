"""Our errors over the wire: sent as codes and fields, raised again as the same class.

Only data crosses: no class name, no code, no traceback. A peer that sends a code we do not
know still sends its parents' codes, so the caller's `except` keeps working across versions.
"""

from typing import Final

import msgspec

from nuage.channel.frames import Failure
from nuage.errors import UNREADABLE, NuageError

MESSAGE_CHARS_MAX: Final = 4000  # an error is read by people

_fields_decoder: Final = msgspec.msgpack.Decoder(dict[str, object])


def failure_of(call_id: int, error: NuageError) -> Failure:
    """Return the frame that tells the caller of `call_id` about `error`."""
    fields = {
        name: value
        for name, value in vars(error).items()
        if name not in {"message", "hint"} and not name.startswith("_")
    }
    return Failure(
        id=call_id,
        codes=_codes_of(type(error)),
        message=error.message[:MESSAGE_CHARS_MAX],
        hint=error.hint[:MESSAGE_CHARS_MAX],
        fields=msgspec.Raw(_encode_fields(fields)),
    )


def error_of(failure: Failure) -> NuageError:
    """Return the error that `failure` carries, of the closest class known here."""
    known = _classes_by_code()
    cls = next((known[code] for code in failure.codes if code in known), NuageError)
    error = cls.__new__(cls)
    NuageError.__init__(error, failure.message, hint=failure.hint)
    try:
        fields = _fields_decoder.decode(failure.fields)
    except UNREADABLE:
        fields = {}  # the class and the message still say what happened
    for name, value in fields.items():
        if name.isidentifier() and not name.startswith("_") and not hasattr(cls, name):
            setattr(error, name, _frozen(value))
    return error


def _codes_of(cls: type[NuageError]) -> tuple[str, ...]:
    parents = [parent for parent in cls.__mro__ if issubclass(parent, NuageError)]
    return tuple(dict.fromkeys(parent.code for parent in parents))


def _classes_by_code() -> dict[str, type[NuageError]]:
    """Return every error class loaded; the highest one wins where a code is inherited."""
    known: dict[str, type[NuageError]] = {}
    waiting = [NuageError]
    while waiting:
        cls = waiting.pop(0)
        known.setdefault(cls.code, cls)
        waiting.extend(cls.__subclasses__())
    return known


def _encode_fields(fields: dict[str, object]) -> bytes:
    try:
        return msgspec.msgpack.encode(fields)
    except (TypeError, ValueError):  # a field of a class that does not travel
        return msgspec.msgpack.encode({name: str(value) for name, value in fields.items()})


def _frozen(value: object) -> object:
    """Return lists as tuples, which is how our errors keep them."""
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return value
