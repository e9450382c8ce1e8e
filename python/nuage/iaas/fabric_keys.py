"""Generations of the fabric's key: which one signs, and which are accepted, as a new one comes.

Every controller derives the key of a generation from the secret that controllers share, so a roll
moves no secret: a number in `SiteTrust` rises, and the feeds bring it. A node that was revoked knew
the keys of the past and cannot make the next. A datacenter that was revoked could: with it the
secret itself is replaced (`trust.shared_secrets`), and no generation of a new secret is learnt here
before that secret is.

::

    learnt          SIGN_AFTER_S                            DROP_AFTER_S
      | old signs, both are accepted | new signs, both are accepted | new alone

A site that learns later than the others sign is refused until it does: three Hellos may be lost
before an adjacency ends (`network.circuit.HOLDING_S`), and feeds take a fraction of a second.
"""

import hmac
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from nuage.iaas.index import FederationIndex
from nuage.model.trust import SiteTrust
from nuage.trust.shared_secrets import SharedSecrets

SIGN_AFTER_S: Final = 5.0
DROP_AFTER_S: Final = 120.0  # as long as a neighbour may take to restart: its agent may be away
SETTLE_S: Final = 3.0  # after the first: what is learnt is old news, and signs at once
KEY_IDS: Final = 65_535  # RFC 5310 §3.1: sixteen bits; 0 is left out


@dataclass(frozen=True, slots=True)
class FabricKeySet:
    """The key that signs, and others that are accepted, in hexadecimal; and their generations."""

    key: str = field(repr=False)
    key_id: int = 1
    old: dict[int, str] = field(default_factory=dict, repr=False)
    generation: int = 0
    accepted: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Known:
    generation: int
    learnt_s: float
    signs_s: float


def fabric_key(secret: bytes, generation: int = 0) -> str:
    """Derive a generation's key from the secret that the federation's controllers share."""
    label = b"fabric:is-is" + (f":{generation}".encode() if generation else b"")
    return hmac.digest(secret, label, "sha256").hex()


def key_id_of(generation: int) -> int:
    """Return the number under which a generation's key stands on the wire."""
    return 1 + generation % KEY_IDS


def newest_generation(index: FederationIndex) -> int:
    """Return the highest generation of keys that any site has published."""
    return max((0, *(trust.key_generation for trust in index.values(SiteTrust))))


class KeyRoll:
    """Says at each time which keys an RBridge shall have. Told the highest generation known."""

    def __init__(self, secrets: SharedSecrets) -> None:
        self._secrets = secrets
        self._began_s: float | None = None
        self._known: list[_Known] = []

    @property
    def newest(self) -> int:
        """Return the highest generation learnt, -1: none yet."""
        return self._known[-1].generation if self._known else -1

    def learn(self, generation: int, now_s: float) -> bool:
        """Take the highest generation of all sites; tell whether it is a new one."""
        if generation <= self.newest:
            return False
        if self._began_s is None:
            self._began_s = now_s
            if generation:
                self._known.append(_Known(generation - 1, now_s, now_s))
        is_old_news = now_s - self._began_s < SETTLE_S
        signs_s = now_s if is_old_news else now_s + SIGN_AFTER_S
        self._known.append(_Known(generation, now_s, signs_s))
        return True

    def keys(self, now_s: float) -> FabricKeySet:
        """Return the keys of now; something has been learnt."""
        signs = [known for known in self._known if known.signs_s <= now_s]
        signing = (signs or self._known)[-1 if signs else 0].generation
        accepted = {self._known[-1].generation}
        for known, after in pairwise(self._known):
            if now_s < after.learnt_s + DROP_AFTER_S:
                accepted.add(known.generation)
        return FabricKeySet(
            self._key(signing),
            key_id_of(signing),
            {key_id_of(g): self._key(g) for g in sorted(accepted - {signing})},
            signing,
            tuple(sorted(accepted - {signing})),
        )

    def _key(self, generation: int) -> str:
        return fabric_key(self._secrets.of(generation), generation)

    def next_s(self, now_s: float) -> float | None:
        """Return when `keys` says something else, None: not before something is learnt."""
        times = [known.signs_s for known in self._known]
        times += [after.learnt_s + DROP_AFTER_S for _, after in pairwise(self._known)]
        return min((time_s for time_s in times if time_s > now_s), default=None)
