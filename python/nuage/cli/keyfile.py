"""A tenant's key in a file of their own: 64 hexadecimal digits, mode 0600."""

import secrets
from pathlib import Path

from nuage.errors import InvalidRequest
from nuage.trust.files import require_private, write_atomically


def read_key_file(path: Path) -> str:
    """Return the key in `path` as hexadecimal digits.

    Raises:
        InvalidRequest: it holds something else, or others may read it.
    """
    from nuage.trust.datakeys import parse_key

    require_private(path)
    try:
        return parse_key(path.read_text(encoding="ascii")).hex()
    except UnicodeDecodeError:
        raise InvalidRequest(f"{path} holds no key", field="key_file") from None


def make_key_file(path: Path) -> str:
    """Return the key in `path`; a fresh one is written there when it is absent."""
    if not path.exists():
        from nuage.trust.datakeys import KEY_BYTES

        write_atomically(path, secrets.token_hex(KEY_BYTES).encode() + b"\n", secret=True)
    return read_key_file(path)
