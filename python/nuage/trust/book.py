"""What a site knows of the others' trust: their authorities, signing keys and revocations.

Fed by `SiteTrust` documents that arrive with the feeds. Everything is checked against the
federation's root, so it does not matter who brought it; nothing is ever taken back by an
older document.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from nuage.errors import CorruptData, NotFound, Unauthenticated
from nuage.ids import SiteId
from nuage.model.trust import SiteTrust
from nuage.trust.pki import (
    federation_of_root,
    key_identifier,
    load_certificate,
    load_chain,
    not_after_s,
    public_key_of,
    require_signer,
    require_site_authority,
)
from nuage.trust.revocation import Revocations, read_revocation_list
from nuage.trust.verify import SiteKey, read_seal


@dataclass(frozen=True, slots=True)
class PublishedKey:
    """A site's public signing key. `key_id` is the X.509 key identifier in hexadecimal."""

    key_id: str
    site_id: SiteId
    public_key: Ed25519PublicKey
    certificate: x509.Certificate


class TrustBook:
    """Every site's published trust, verified. Decides; does no I/O."""

    def __init__(self, root: x509.Certificate) -> None:
        self.root = root
        self.federation_id = federation_of_root(root)
        self.revocations = Revocations()
        self._authorities: dict[SiteId, x509.Certificate] = {}
        self._keys: dict[str, PublishedKey] = {}
        self._audit_heads: dict[SiteId, tuple[int, str]] = {}

    def take(self, document: SiteTrust) -> bool:
        """Take a site's document in; return whether a revocation list in it was news.

        When it was, close the channels of `revocations.to_drop(peers)`.

        Raises:
            Unauthenticated: a part of it does not come from the root; nothing was taken.
            InvalidRequest: a part of it cannot be read; nothing was taken.
            CorruptData: its audit seal contradicts an earlier one; the rest was taken.
        """
        site_id = document.site_id
        authority = load_certificate(document.authority_pem)
        # Validity is not checked here: old signers are needed to verify old logs, and a token
        # or a handshake checks dates where they matter.
        require_site_authority(
            authority, self.root, federation_id=self.federation_id, site_id=site_id, now_s=None
        )
        signers = load_chain(document.signers_pem)
        for signer in signers:
            require_signer(
                signer, authority, federation_id=self.federation_id, site_id=site_id, now_s=None
            )
        read_revocation_list(document.revocations_pem, authority)
        if document.root_revocations_pem:
            read_revocation_list(document.root_revocations_pem, self.root)
        news = self.revocations.take(document.revocations_pem, authority)
        if document.root_revocations_pem:
            news |= self.revocations.take(document.root_revocations_pem, self.root, is_root=True)
        self._authorities[site_id] = self._later(site_id, authority)
        for signer in signers:
            public_key = public_key_of(signer)
            key_id = key_id_of(public_key)
            self._keys[key_id] = PublishedKey(key_id, site_id, public_key, signer)
        self._take_seal(document)
        return news

    def _later(self, site_id: SiteId, authority: x509.Certificate) -> x509.Certificate:
        """Return `authority`, or the certificate known of the same key that ends later."""
        known = self._authorities.get(site_id, authority)
        is_renewal = public_key_of(known) == public_key_of(authority)
        return known if is_renewal and not_after_s(known) > not_after_s(authority) else authority

    def _take_seal(self, document: SiteTrust) -> None:
        if not document.audit_seal:
            return
        site_id = document.site_id
        try:
            head = read_seal(document.audit_seal, self.public_keys(), site_id)
        except ValueError as error:
            raise Unauthenticated(f"the audit seal of site {site_id!r}: {error}") from error
        known = self._audit_heads.get(site_id)
        if known is not None and known[0] == head[0] and known[1] != head[1]:
            raise CorruptData(
                f"site {site_id!r} has published two audit logs",
                where=f"record {head[0]}: {known[1]} and {head[1]}",
                hint="keep both: they prove that the log was written anew",
            )
        if known is None or head[0] > known[0]:
            self._audit_heads[site_id] = head

    def site_ids(self) -> tuple[SiteId, ...]:
        """Return the sites known, in order."""
        return tuple(sorted(self._authorities))

    def authority_of(self, site_id: SiteId) -> x509.Certificate:
        """Return a site's authority, or raise NotFound."""
        try:
            return self._authorities[site_id]
        except KeyError:
            raise NotFound("authority of site", site_id) from None

    def key(self, key_id: str) -> PublishedKey | None:
        """Return the signing key `key_id`, None when unknown or revoked."""
        known = self._keys.get(key_id)
        if known is None or self.revocations.refusal_of(known.certificate):
            return None
        return known

    def public_keys(self) -> Mapping[str, SiteKey]:
        """Return all signing keys ever published, by id: what an auditor takes along."""
        return {
            key_id: SiteKey(known.site_id, raw_key(known.public_key))
            for key_id, known in self._keys.items()
        }


def key_id_of(public_key: Ed25519PublicKey) -> str:
    """Return the name of a signing key."""
    return key_identifier(public_key).hex()


def raw_key(public_key: Ed25519PublicKey) -> bytes:
    """Return the 32 bytes of an Ed25519 public key."""
    return public_key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def keys_document(keys: Mapping[str, SiteKey]) -> bytes:
    """Return the ``keys.json`` that holds `keys`."""
    entries = [
        {
            "key_id": key_id,
            "site_id": key.site_id,
            "public_key": base64.b64encode(key.public_key).decode(),
        }
        for key_id, key in sorted(keys.items())
    ]
    return json.dumps({"keys": entries}, indent=2).encode() + b"\n"
