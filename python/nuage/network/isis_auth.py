"""HMAC-SHA-256 over IS-IS PDUs (RFC 5310), and nothing weaker.

The digest field is filled with Apad, an LSP's lifetime and checksum with zeros, then the HMAC
of the whole PDU goes into the field, then the LSP checksum is computed. Receiving accepts any
key of the ring, so that keys roll without losing an adjacency. Replay of Hellos is not
detected here: the three-way handshake and BFD bound what it can do (docs/design/network.md).
"""

import hashlib
import hmac
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from nuage.network.isis_pdu import (
    CHECKSUM_OFFSET,
    LIFETIME_OFFSET,
    LSP,
    Lsp,
    MtuPdu,
    Pdu,
    encode_pdu,
    kind_of,
    with_checksum,
)
from nuage.network.isis_tlv import Authentication, Padding
from nuage.network.wire import MalformedFrame

DIGEST_BYTES: Final = 32
AUTH_TLV_BYTES: Final = 2 + 3 + DIGEST_BYTES
APAD: Final = bytes.fromhex("878fe1f3") * (DIGEST_BYTES // 4)


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys of the fabric: one to sign with, all to accept. Empty: authentication is off."""

    send_key_id: int = 0
    keys: Mapping[int, bytes] = field(default_factory=dict, repr=False)

    @property
    def enabled(self) -> bool:
        """Tell whether PDUs are signed and checked."""
        return bool(self.keys)

    @property
    def signing_key(self) -> tuple[int, bytes]:
        """Return what signs, with its number on the wire."""
        return self.send_key_id, self.keys.get(self.send_key_id, b"")


def encode_signed(pdu: Pdu, ring: Keyring) -> bytes:
    """Return the bytes of `pdu`, authenticated when the ring has keys (RFC 5310 §3.3)."""
    if not ring.enabled:
        return encode_pdu(pdu)
    blank = Authentication(Authentication.GENERIC, ring.send_key_id, APAD)
    unsigned = encode_pdu(replace(pdu, tlvs=(blank, *pdu.tlvs)))
    digest = _digest(unsigned, ring.keys[ring.send_key_id])
    at = unsigned[1] + 5  # the authentication TLV stands first after the header
    signed = unsigned[:at] + digest + unsigned[at + DIGEST_BYTES :]
    return with_checksum(signed) if isinstance(pdu, Lsp) else signed


def encode_padded(pdu: MtuPdu, ring: Keyring, size_bytes: int) -> bytes:
    """Return `pdu` signed and padded to `size_bytes` (within a byte: a TLV has two)."""
    missing = size_bytes - len(encode_signed(pdu, ring))
    padding: list[Padding] = []
    while missing >= 2:
        size = min(missing - 2, 255)
        if missing - size - 2 == 1:
            size -= 1
        padding.append(Padding(size))
        missing -= size + 2
    return encode_signed(replace(pdu, tlvs=(*pdu.tlvs, *padding)), ring)


def verify(raw: bytes, ring: Keyring) -> None:
    """Check the authentication of a whole PDU of which nothing else was read (`whole_pdu`).

    What comes without the key is to cost as little as can be: whoever reaches a trunk can send it.

    Raises:
        MalformedFrame: cause ``auth_missing``, ``auth_key`` (unknown key id) or ``auth_digest``;
            ``truncated`` where a TLV leads out of the PDU.
    """
    if not ring.enabled:
        return
    start, end = _authentication_in(raw)
    if end - start < 3 or raw[start] != Authentication.GENERIC:
        raise MalformedFrame("auth_missing")
    at, key_id = start + 3, int.from_bytes(raw[start + 1 : start + 3], "big")
    key = ring.keys.get(key_id)
    if key is None:
        raise MalformedFrame("auth_key", f"key id {key_id}")
    if end - at != DIGEST_BYTES:
        raise MalformedFrame("auth_digest")
    blank = raw[:at] + APAD + raw[end:]
    if not hmac.compare_digest(_digest(blank, key), raw[at:end]):
        raise MalformedFrame("auth_digest")


def _authentication_in(raw: bytes) -> tuple[int, int]:
    """Return where the value of the only authentication TLV is; nowhere when there are more."""
    found, offset, end = [(0, 0)], raw[1], len(raw)
    while offset + 2 <= end:
        following = offset + 2 + raw[offset + 1]
        if raw[offset] == Authentication.number:
            found.append((offset + 2, following))
        offset = following
    if offset != end:
        raise MalformedFrame("truncated", "a TLV leads out of the PDU")
    return found[-1] if len(found) == 2 else found[0]


def _digest(raw: bytes, key: bytes) -> bytes:
    if kind_of(raw) == LSP:
        raw = b"".join(
            (
                raw[:LIFETIME_OFFSET],
                struct.pack(">H", 0),
                raw[LIFETIME_OFFSET + 2 : CHECKSUM_OFFSET],
                struct.pack(">H", 0),
                raw[CHECKSUM_OFFSET + 2 :],
            )
        )
    return hmac.digest(key, raw, hashlib.sha256().name)
