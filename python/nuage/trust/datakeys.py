"""Data keys of IaaSes: made at random, sealed for the catalogues, in clear in memory only.

A data key is sealed with a key of its own: derived from the secret that the federation's
controllers share, so that they unseal it by themselves; or the tenant's, who gives it when it is
needed and whose key is stored nowhere. Destroying all sealed forms destroys the data
(crypto-shredding).
"""

import hmac
import os

from nuage.errors import CorruptData, Forbidden, InvalidRequest, Locked, NotFound
from nuage.ids import EntropySource, IaasId
from nuage.model.iaas import KEY_SHREDDED, IaasKey, KeyHolder
from nuage.trust.sealing import Sealer
from nuage.trust.shared_secrets import SharedSecrets

KEY_BYTES = 32


def key_id_of(key: bytes) -> str:
    """Return what tells a data key from another and gives nothing away (journal.md §3)."""
    return hmac.digest(key, b"nuage key id", "sha256")[:16].hex()


def parse_key(text: str) -> bytes:
    """Return a tenant's key from its 64 hexadecimal digits.

    Raises:
        InvalidRequest: it is something else; the message does not repeat it.
    """
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise InvalidRequest("a key has 64 hexadecimal digits", field="tenant_key")
    return key


def _purpose(iaas_id: IaasId) -> str:
    return f"data key of {iaas_id}"


def _earlier_purpose(iaas_id: IaasId) -> str:
    return f"earlier data keys of {iaas_id}"


def _sealing_key(data_key: bytes) -> bytes:
    """Return the key that seals the data keys before `data_key`."""
    return hmac.digest(data_key, b"nuage earlier keys", "sha256")


def _with_earlier(key: IaasKey, newest: bytes) -> tuple[bytes, ...]:
    if not key.earlier:
        return (newest,)
    sealer = Sealer((_sealing_key(newest),))
    joined = sealer.unseal(key.earlier, purpose=_earlier_purpose(key.iaas_id))
    return newest, *(joined[at : at + KEY_BYTES] for at in range(0, len(joined), KEY_BYTES))


class Keyring:
    """The data keys that are unlocked at this site. `secrets` are what the controllers share."""

    def __init__(
        self, secrets: SharedSecrets | None = None, entropy: EntropySource = os.urandom
    ) -> None:
        self._secrets = SharedSecrets({0: b""}) if secrets is None else secrets
        self._entropy = entropy
        self._unlocked: dict[IaasId, tuple[bytes, ...]] = {}

    def _own_sealer(self, iaas_id: IaasId) -> Sealer:
        """Seal with the newest secret; what was sealed with an earlier one opens as well."""
        label = f"seal:{iaas_id}".encode()
        secrets = self._secrets.held().values()
        keys = tuple(hmac.digest(secret, label, "sha256") for secret in secrets)
        return Sealer(keys, self._entropy)

    @property
    def generation(self) -> int:
        """Return the generation with which the newest of the controllers' secrets began."""
        return self._secrets.newest

    def make(self, iaas_id: IaasId, tenant_key: str = "", *, generation: int = 0) -> IaasKey:
        """Make a data key; it is unlocked here from now on."""
        return self._make(iaas_id, (), tenant_key, generation)

    def make_next(self, key: IaasKey, tenant_key: str = "", *, generation: int) -> IaasKey:
        """Make the data key that follows one; what was written with that is read with that.

        Raises:
            Locked: the former is not unlocked here, or was destroyed.
            Forbidden: that is not the tenant's key.
        """
        if key.holder is KeyHolder.TENANT:
            self.unlock(key, tenant_key)
        earlier = self.data_keys(key)
        if not earlier:
            raise Locked(f"the data key of {key.iaas_id} is not here: it was destroyed")
        return self._make(key.iaas_id, earlier, tenant_key, generation)

    def _make(
        self, iaas_id: IaasId, earlier: tuple[bytes, ...], tenant_key: str, generation: int
    ) -> IaasKey:
        key = self._entropy(KEY_BYTES)
        holder = KeyHolder.TENANT if tenant_key else KeyHolder.FEDERATION
        sealer = (
            Sealer((parse_key(tenant_key),), self._entropy)
            if tenant_key
            else self._own_sealer(iaas_id)
        )
        return IaasKey(
            iaas_id=iaas_id,
            key_id=key_id_of(key),
            sealed=sealer.seal(key, purpose=_purpose(iaas_id)),
            holder=holder,
            earlier=self._seal_earlier(iaas_id, key, earlier),
            generation=generation,
        )

    def _seal_earlier(self, iaas_id: IaasId, key: bytes, earlier: tuple[bytes, ...]) -> str:
        self._unlocked[iaas_id] = (key, *earlier)
        if not earlier:
            return ""
        sealer = Sealer((_sealing_key(key),), self._entropy)
        return sealer.seal(b"".join(earlier), purpose=_earlier_purpose(iaas_id))

    def unlock(self, key: IaasKey, tenant_key: str) -> None:
        """Unseal a data key with its tenant's key.

        Raises:
            Locked: the data key was destroyed.
            Forbidden: that is not the tenant's key.
        """
        if key.key_id == KEY_SHREDDED:
            raise Locked(f"the data key of {key.iaas_id} was destroyed; nobody can unlock it")
        try:
            opened = Sealer((parse_key(tenant_key),)).unseal(
                key.sealed, purpose=_purpose(key.iaas_id)
            )
        except (NotFound, CorruptData):
            raise Forbidden(f"that is not the key that locks {key.iaas_id}") from None
        self._unlocked[key.iaas_id] = _with_earlier(key, opened)

    def data_keys(self, key: IaasKey) -> tuple[bytes, ...]:
        """Return the data key and those before it; none while its tenant has to unlock it here."""
        if key.key_id == KEY_SHREDDED:
            self.forget(key.iaas_id)
            return ()
        known = self._unlocked.get(key.iaas_id, ())
        if known and key_id_of(known[0]) == key.key_id:
            return known
        if key.holder is KeyHolder.TENANT:
            return ()
        sealer = self._own_sealer(key.iaas_id)
        newest = sealer.unseal(key.sealed, purpose=_purpose(key.iaas_id))
        self._unlocked[key.iaas_id] = _with_earlier(key, newest)
        return self._unlocked[key.iaas_id]

    def forget(self, iaas_id: IaasId) -> None:
        """Let go of a data key."""
        self._unlocked.pop(iaas_id, None)
