"""Secrets of users and tokens: made here, and kept as scrypt hashes only.

A hash says its own parameters: ``scrypt$<log2 n>$<r>$<p>$<salt>$<hash>``, salt and hash in unpadded
URL-safe base64, so the cost may rise without making old ones useless.
"""

import asyncio
import base64
import hashlib
import hmac
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

from nuage.errors import CorruptData
from nuage.ids import EntropySource

LOG2_N: Final = 14  # 16 MiB and ≈ 40 ms: what a log-in may cost (RFC 7914 §2)
BLOCK: Final = 8
PARALLEL: Final = 1
LOG2_N_MAX: Final = 20  # a stored hash may not make us spend 1 GiB
SALT_BYTES: Final = 16
HASH_BYTES: Final = 32
SECRET_BYTES: Final = 24
SECRET_CHARS_MAX: Final = 1024
# Each thread that hashes keeps a hash's memory (16 MiB): many log-ins at once took all of the
# process's threads, of which a large machine has dozens, and kept that of each.
HASHING_THREADS: Final = 2

P = ParamSpec("P")
R = TypeVar("R")
_hashing: Final = ThreadPoolExecutor(HASHING_THREADS, thread_name_prefix="hashing")


def new_secret(entropy: EntropySource = os.urandom) -> str:
    """Return a fresh secret that people can copy (32 characters, 192 bits)."""
    return b64(entropy(SECRET_BYTES))


def hash_secret(secret: str, entropy: EntropySource = os.urandom) -> str:
    """Return what to store in place of `secret`. Takes tens of milliseconds on purpose."""
    salt = entropy(SALT_BYTES)
    digest = _scrypt(secret, salt, LOG2_N, BLOCK, PARALLEL)
    return f"scrypt${LOG2_N}${BLOCK}${PARALLEL}${b64(salt)}${b64(digest)}"


def verify_secret(secret: str, stored: str) -> bool:
    """Tell whether `secret` is the one that `stored` was made of, in constant time.

    Raises:
        CorruptData: `stored` is not one of our hashes.
    """
    if len(secret) > SECRET_CHARS_MAX:
        return False
    try:
        scheme, log2_n, block, parallel, salt, digest = stored.split("$")
        numbers = int(log2_n), int(block), int(parallel)
        if scheme != "scrypt" or not 1 <= numbers[0] <= LOG2_N_MAX or numbers[1] > 32:
            raise ValueError(scheme)
        expected = unb64(digest)
        found = _scrypt(secret, unb64(salt), *numbers)
    except ValueError as error:
        raise CorruptData("not a hash of a secret", where="secret_hash") from error
    return hmac.compare_digest(found, expected)


async def while_others_run(act: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Return what `act`, which hashes a secret, gives; others wait for their turn, nobody else."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_hashing, lambda: act(*args, **kwargs))


def b64(data: bytes) -> str:
    """Return unpadded URL-safe base64."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    """Return the bytes of unpadded URL-safe base64 in its one canonical form.

    Raises:
        ValueError: it is not.
    """
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if b64(data) != text:
        raise ValueError("base64 in a form that we do not write")
    return data


def _scrypt(secret: str, salt: bytes, log2_n: int, block: int, parallel: int) -> bytes:
    cost = 1 << log2_n
    return hashlib.scrypt(
        secret.encode(),
        salt=salt,
        n=cost,
        r=block,
        p=parallel,
        maxmem=129 * cost * block + 1024 * 1024,  # OpenSSL's default refuses n = 2^15
        dklen=HASH_BYTES,
    )
