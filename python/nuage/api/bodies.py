"""A request's body as the operation's type: nothing missing, of the wrong kind, or extra.

What is not known is refused at every depth: a rule of a contract whose name is misspelt must not
silently be no rule.
"""

from dataclasses import fields, is_dataclass
from functools import cache
from typing import TypeAlias, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from nuage.api.dispatch import invalid_body
from nuage.errors import InvalidRequest

T = TypeVar("T")
# Under a field: the class of the object there, and how many lists or tables it lies in.
Inner: TypeAlias = tuple[type, int]


def convert(values: dict[str, object], kind: type[T], *, is_text: bool) -> T:
    """Return `values` as `kind`; `is_text`: of a query, where numbers are written as text.

    Raises:
        InvalidRequest: a field is missing, unknown or of the wrong kind; it is named by its path.
    """
    _require_known(values, kind, "")
    try:
        return msgspec.convert(values, kind, strict=not is_text)
    except msgspec.ValidationError as error:
        raise invalid_body(error) from None


def _require_known(values: dict[str, object], kind: type, path: str) -> None:
    known = _fields_of(kind)
    for name, value in values.items():
        where = f"{path}.{name}" if path else name
        if name not in known:
            raise InvalidRequest(
                f"no field {name!r} {f'in {path}' if path else 'here'}",
                field=where,
                hint=f"there is {', '.join(sorted(known)) or 'none'}",
            )
        inner = known[name]
        if inner is not None:
            _require_inner(value, inner, where)


def _require_inner(value: object, inner: Inner, path: str) -> None:
    """Look into a field's objects; what is no object is told by the conversion."""
    kind, depth = inner
    if not depth:
        if isinstance(value, dict):
            _require_known(value, kind, path)
        return
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _require_inner(each, (kind, depth - 1), path)


@cache
def _fields_of(kind: type) -> dict[str, Inner | None]:
    hints = get_type_hints(kind)
    return {field.name: _inner_of(hints[field.name]) for field in fields(kind)}


def _inner_of(hint: object) -> Inner | None:
    """Return the dataclass that a field holds, itself, in lists or as values of a table."""
    if isinstance(hint, type) and is_dataclass(hint):
        return hint, 0
    origin = get_origin(hint)
    for part in get_args(hint):
        found = _inner_of(part)
        if found is not None:
            return found[0], found[1] + (origin in (tuple, list, dict, frozenset, set))
    return None
