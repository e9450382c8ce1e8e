"""Who is no longer believed: revocation lists, and the admission check that uses them.

A site authority lists its daemons and signers, the root lists site authorities. A list is an X.509
CRL with a number; of one issuer the highest number counts, whatever its age: a cut-off site goes on
with what it last knew. Lists travel with the feeds and are believed by their signature,
not by who brought them.

OpenSSL's own CRL check is not used: it refuses everybody once a list is out of date, which
would break every cut-off site, and it never looks at channels that are open already.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from nuage.channel.identity import Identity
from nuage.errors import Forbidden, InvalidRequest, Unauthenticated
from nuage.trust.pki import Authority, issuer_serial_of, key_identifier, public_key_of

LIST_LIFE_S: Final = 30 * 86_400.0  # said for outside tools; we go by number
LIST_BYTES_MAX: Final = 4 * 1024 * 1024


class HasCertificate(Protocol):
    """A peer of a channel, as far as revocation looks at it."""

    @property
    def certificate_der(self) -> bytes:
        """Return the certificate that the peer showed."""
        ...


PeerT = TypeVar("PeerT", bound=HasCertificate)


def make_revocation_list(
    authority: Authority, serials: Iterable[int], *, number: int, now_s: float
) -> str:
    """Return the list `number` of `authority` (PEM), naming `serials` as revoked."""
    now = datetime.fromtimestamp(int(now_s), UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now)
        .next_update(now + timedelta(seconds=LIST_LIFE_S))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),
            critical=False,
        )
    )
    for serial in sorted(set(serials)):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(entry)
    signed = builder.sign(authority.key, None)
    return signed.public_bytes(serialization.Encoding.PEM).decode()


class Revocations:
    """The newest list of each issuer known here. Decides; does no I/O."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._serials: dict[bytes, frozenset[int]] = {}
        self._root_key_id = b""

    def take(self, pem: str, issuer: x509.Certificate, *, is_root: bool = False) -> bool:
        """Take a list that `issuer` signed in; return whether it was news.

        An older list than the one known changes nothing: a lost feed cannot un-revoke.

        Raises:
            InvalidRequest: it is not a revocation list.
            Unauthenticated: `issuer` did not sign it.
        """
        number, serials = read_revocation_list(pem, issuer)
        issuer_id = key_identifier(public_key_of(issuer))
        if is_root:
            self._root_key_id = issuer_id
        if number <= self._numbers.get(issuer_id, -1):
            return False
        self._numbers[issuer_id] = number
        self._serials[issuer_id] = serials
        return True

    def all_serials(self) -> frozenset[int]:
        """Return the serial numbers that any issuer has revoked, as far as known here."""
        return frozenset().union(*self._serials.values())

    def number_of(self, issuer: x509.Certificate) -> int:
        """Return the number of the list known of `issuer`; -1 when there is none."""
        return self._numbers.get(key_identifier(public_key_of(issuer)), -1)

    def serials_of(self, issuer: x509.Certificate) -> frozenset[int]:
        """Return the serial numbers that `issuer` has revoked."""
        return self._serials.get(key_identifier(public_key_of(issuer)), frozenset())

    def refusal_of(self, certificate: x509.Certificate) -> str:
        """Return why a leaf is not believed any more, or ""."""
        root_serials = self._serials.get(self._root_key_id, frozenset())
        if issuer_serial_of(certificate) in root_serials:
            return "the authority of its site was revoked"
        extension = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
        issuer_id = extension.value.key_identifier or b""
        if certificate.serial_number in self._serials.get(issuer_id, frozenset()):
            return "its certificate was revoked"
        return ""

    def admit(self, identity: Identity, certificate_der: bytes) -> None:
        """Refuse a revoked peer; give this to ChannelServer and ChannelClient as `admit`.

        Raises:
            Forbidden: the peer was revoked.
        """
        refusal = self.refusal_of(x509.load_der_x509_certificate(certificate_der))
        if refusal:
            raise Forbidden(
                f"{identity} is refused: {refusal}",
                hint="join again with a new token if that was a mistake",
            )

    def to_drop(self, peers: Iterable[PeerT]) -> tuple[PeerT, ...]:
        """Return those of the open `peers` that are revoked now; close them after each `take`."""
        return tuple(
            peer
            for peer in peers
            if self.refusal_of(x509.load_der_x509_certificate(peer.certificate_der))
        )


def read_revocation_list(pem: str, issuer: x509.Certificate) -> tuple[int, frozenset[int]]:
    """Return number and serials of a list that `issuer` signed.

    Raises:
        InvalidRequest: it is not a revocation list, or has no number.
        Unauthenticated: `issuer` did not sign it.
    """
    if len(pem) > LIST_BYTES_MAX:
        raise InvalidRequest("the revocation list is too long", field="revocations_pem")
    try:
        parsed = x509.load_pem_x509_crl(pem.encode())
        number = parsed.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        signed = parsed.is_signature_valid(public_key_of(issuer))
    except (ValueError, UnicodeEncodeError, TypeError, x509.ExtensionNotFound) as error:
        raise InvalidRequest("this is not a revocation list", field="revocations_pem") from error
    if not signed or parsed.issuer != issuer.subject:
        raise Unauthenticated(
            f"the revocation list was not signed by {issuer.subject.rfc4514_string()}"
        )
    return number, frozenset(entry.serial_number for entry in parsed)
