"""Small secrets at rest (data keys), sealed with a key that the caller holds.

::

    nuageseal1.<key id>.<nonce and ciphertext>     in unpadded URL-safe base64

AES-256-GCM; what the secret is for (`purpose`) is bound in, so a sealed secret moved to another
object does not open. The first of several keys seals; any of them opens.
"""

import hashlib
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from nuage.errors import CorruptData, InvalidRequest, NotFound
from nuage.ids import EntropySource
from nuage.trust.secrets import b64, unb64

PREFIX: Final = "nuageseal1"
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12  # random: 2^32 seals a key are safe (NIST SP 800-38D §8.3)
SECRET_BYTES_MAX: Final = 64 * 1024


class Sealer:
    """Seals with the newest key, opens with any."""

    def __init__(self, keys: tuple[bytes, ...], entropy: EntropySource = os.urandom) -> None:
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise InvalidRequest(f"a sealing key has {KEY_BYTES} bytes", field="keys")
        self._keys = {_key_id(key): AESGCM(key) for key in keys}
        self._newest = _key_id(keys[0])
        self._entropy = entropy

    def seal(self, secret: bytes, *, purpose: str) -> str:
        """Return `secret` in a form that may be stored anywhere.

        Raises:
            InvalidRequest: it is longer than a small secret.
        """
        if len(secret) > SECRET_BYTES_MAX:
            raise InvalidRequest("too long for a small secret", field="secret")
        nonce = self._entropy(NONCE_BYTES)
        box = self._keys[self._newest].encrypt(nonce, secret, _bound(purpose))
        return f"{PREFIX}.{self._newest}.{b64(nonce + box)}"

    def unseal(self, sealed: str, *, purpose: str) -> bytes:
        """Return the secret.

        Raises:
            CorruptData: it was changed, or sealed for another purpose.
            NotFound: it was sealed with a key that is not here.
        """
        try:
            prefix, key_id, text = sealed.split(".")
            box = unb64(text)
            if prefix != PREFIX or len(box) <= NONCE_BYTES:
                raise ValueError(prefix)
        except ValueError as error:
            raise CorruptData("not a sealed secret", where=purpose) from error
        key = self._keys.get(key_id)
        if key is None:
            raise NotFound("sealing key", key_id, hint="bring the site's old key file back")
        try:
            return key.decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], _bound(purpose))
        except InvalidTag as error:
            raise CorruptData("a sealed secret does not open", where=purpose) from error


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"nuage/seal-key-id\0" + key).hexdigest()[:16]


def _bound(purpose: str) -> bytes:
    return f"{PREFIX}\0{purpose}".encode()
