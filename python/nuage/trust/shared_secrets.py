"""What the federation's controllers share and nobody else knows: one secret, and those before it.

Keys of the fabric, CHAP secrets and the seals of data keys derive from it. A datacenter that is
revoked knew it, so each revocation of one begins a new secret, made at random where the root's key
is; the other controllers fetch it from one another (`daemon.secret_desk`), never through a feed. A
secret is named by the generation of keys with which it began (`SiteTrust.secret_generation`).
Earlier ones stay: what was made of them is still in use.

The file (0600) has a line for each, the newest first::

    <generation> <secret in unpadded URL-safe base64>
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nuage.errors import CorruptData, Unavailable
from nuage.ids import EntropySource
from nuage.trust.files import require_private, write_atomically
from nuage.trust.secrets import b64, unb64

SECRET_BYTES: Final = 32
SECRETS_MAX: Final = 1024  # a datacenter is revoked once in years; what a peer may send is bounded


class SharedSecrets:
    """The secrets known here, by the generation with which each began."""

    def __init__(self, secrets: Mapping[int, bytes]) -> None:
        self._secrets = dict(secrets)

    def __repr__(self) -> str:
        return f"SharedSecrets(generations {sorted(self._secrets)}, secrets hidden)"

    @property
    def newest(self) -> int:
        """Return the generation of the newest secret, -1: there is none."""
        return max(self._secrets, default=-1)

    def held(self) -> dict[int, bytes]:
        """Return every secret by its generation, the newest first."""
        return dict(sorted(self._secrets.items(), reverse=True))

    def of(self, generation: int) -> bytes:
        """Return the secret from which the keys of a generation derive: the last one begun by it.

        Raises:
            Unavailable: there is none so old.
        """
        begun = max((start for start in self._secrets if start <= generation), default=None)
        if begun is None:
            raise Unavailable(f"no secret of generation {generation} is here")
        return self._secrets[begun]

    def take(self, secrets: Mapping[int, bytes]) -> bool:
        """Take in what another controller holds; tell whether something was new.

        Raises:
            CorruptData: it is not what controllers hold, or contradicts what is here.
        """
        for generation, secret in secrets.items():
            if generation < 0 or len(secret) != SECRET_BYTES or len(secrets) > SECRETS_MAX:
                raise CorruptData("not the controllers' secrets", where="an answer of a controller")
            if self._secrets.get(generation, secret) != secret:
                raise CorruptData(
                    f"two secrets began with generation {generation}",
                    where="an answer of a controller",
                )
        news = set(secrets) - set(self._secrets)
        self._secrets.update(secrets)
        return bool(news)

    def begin(self, generation: int, entropy: EntropySource = os.urandom) -> None:
        """Make a new secret at random, in force from `generation` on."""
        self.take({generation: entropy(SECRET_BYTES)})


def read_secrets(path: Path) -> SharedSecrets:
    """Return what the file holds; nothing when there is none.

    Raises:
        Forbidden: others may read it.
        CorruptData: it holds something else.
    """
    if not path.exists():
        return SharedSecrets({})
    require_private(path)
    secrets = {}
    try:
        for line in path.read_text().splitlines():
            generation, _, secret = line.partition(" ")
            secrets[int(generation)] = unb64(secret)
    except ValueError as error:
        raise CorruptData("not the controllers' secrets", where=str(path)) from error
    found = SharedSecrets({})
    found.take(secrets)
    return found


def write_secrets(path: Path, secrets: SharedSecrets) -> None:
    """Keep the secrets in a file that is its owner's alone."""
    lines = [f"{generation} {b64(secret)}\n" for generation, secret in secrets.held().items()]
    write_atomically(path, "".join(lines).encode(), secret=True)
