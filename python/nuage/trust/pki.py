"""The federation's X.509: a root, one intermediate authority per site, leaves for daemons.

::

    federation root ──┬── site authority marne ──┬── marne/controller/c1     (days)
     (offline-able,   │    (years, pathlen 0,    ├── marne/vnode/v1
      decades)        │     only *.marne.fr…)    └── signer of marne         (tokens, logs)
                      └── site authority lyon ───── …

Pure: keys and certificates in and out, time as a parameter; files are `store`'s. All keys
are Ed25519. A site authority is constrained by name to its own site, checked by OpenSSL in
the handshake together with `nuage.channel.identity`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nuage.channel.identity import DNS_SUFFIX, Identity, parse_identity
from nuage.errors import InvalidRequest, NuageError, Unauthenticated
from nuage.ids import FederationId, SiteId
from nuage.model.infrastructure import require_slug

DAY_S: Final = 86_400.0
ROOT_LIFE_S: Final = 20 * 365 * DAY_S
SITE_LIFE_S: Final = 5 * 365 * DAY_S
SIGNER_LIFE_S: Final = 2 * 365 * DAY_S
DAEMON_LIFE_S: Final = 7 * DAY_S  # a stolen key is worth a week; a cut-off site renews by itself
SKEW_S: Final = 300.0  # clocks of small datacenters
PEM_CHARS_MAX: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate that issues others, and its key."""

    certificate: x509.Certificate
    key: Ed25519PrivateKey


def make_root(federation_id: FederationId, now_s: float) -> Authority:
    """Return a new root for a federation."""
    require_slug(federation_id, "federation_id")
    key = Ed25519PrivateKey.generate()
    name = _name(f"{federation_id} federation root", federation_id)
    builder = (
        _builder(name, name, key.public_key(), now_s=now_s, life_s=ROOT_LIFE_S)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_usage(issues=True), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
    )
    return Authority(builder.sign(key, None), key)


def issue_site_authority(
    root: Authority,
    public_key: Ed25519PublicKey,
    *,
    federation_id: FederationId,
    site_id: SiteId,
    now_s: float,
) -> x509.Certificate:
    """Return the certificate that lets `public_key` issue for the daemons of one site.

    Its serial number is made from its key: a root revocation list thus names it to whoever
    has only a leaf, whose authority key identifier says the same.
    """
    require_slug(site_id, "site_id")
    builder = (
        _builder(
            _name(site_authority_name(site_id), federation_id),
            root.certificate.subject,
            public_key,
            now_s=now_s,
            life_s=SITE_LIFE_S,
            serial=serial_of_authority(key_identifier(public_key)),
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(issues=True), critical=True)
        .add_extension(_issued_by(root), critical=False)
        .add_extension(
            x509.NameConstraints(
                permitted_subtrees=[
                    x509.DNSName(site_domain(federation_id, site_id)),
                    x509.UniformResourceIdentifier(federation_id),
                ],
                excluded_subtrees=None,
            ),
            critical=True,
        )
    )
    return builder.sign(root.key, None)


def issue_daemon(
    authority: Authority,
    public_key: Ed25519PublicKey,
    identity: Identity,
    *,
    now_s: float,
    life_s: float = DAEMON_LIFE_S,
) -> x509.Certificate:
    """Return a daemon's certificate, for both ends of mutual TLS."""
    return _issue_leaf(
        authority,
        public_key,
        _name(str(identity), identity.federation_id),
        [x509.UniformResourceIdentifier(identity.uri), x509.DNSName(identity.dns_name)],
        both_ends=True,
        now_s=now_s,
        life_s=life_s,
    )


def issue_service(
    authority: Authority,
    public_key: Ed25519PublicKey,
    *,
    federation_id: FederationId,
    site_id: SiteId,
    addresses: Sequence[str],
    now_s: float,
    life_s: float = DAEMON_LIFE_S,
) -> x509.Certificate:
    """Return the certificate of what foreign programs reach by address: etcd, the HTTPS API.

    It names IP addresses and no identity, so no daemon accepts it on a channel.
    """
    return _issue_leaf(
        authority,
        public_key,
        _name(f"{site_id} service", federation_id),
        [x509.IPAddress(ip_address(address)) for address in addresses],
        both_ends=True,
        now_s=now_s,
        life_s=life_s,
    )


def issue_signer(
    authority: Authority,
    public_key: Ed25519PublicKey,
    *,
    federation_id: FederationId,
    site_id: SiteId,
    now_s: float,
) -> x509.Certificate:
    """Return the certificate of the key with which a site signs tokens, logs and ledgers.

    It carries no URI, so no daemon accepts it on a channel.
    """
    return _issue_leaf(
        authority,
        public_key,
        _name(f"{site_id} signer", federation_id),
        [x509.DNSName(signer_dns_name(federation_id, site_id))],
        both_ends=False,
        now_s=now_s,
        life_s=SIGNER_LIFE_S,
    )


def _issue_leaf(
    authority: Authority,
    public_key: Ed25519PublicKey,
    subject: x509.Name,
    names: Sequence[x509.GeneralName],
    *,
    both_ends: bool,
    now_s: float,
    life_s: float,
) -> x509.Certificate:
    """Return a certificate that issues nothing; `both_ends`: it may serve and call over TLS."""
    builder = (
        _builder(subject, authority.certificate.subject, public_key, now_s=now_s, life_s=life_s)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(issues=False), critical=True)
    )
    if both_ends:
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    builder = builder.add_extension(_issued_by(authority), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(authority.key, None)


# Requests --------------------------------------------------------------------------------


def make_request(key: Ed25519PrivateKey, name: str) -> str:
    """Return a certificate request (PEM) that proves possession of `key`; `name` is a hint."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, None)
    return request.public_bytes(serialization.Encoding.PEM).decode()


def public_key_of_request(pem: str) -> Ed25519PublicKey:
    """Return the key of a certificate request whose signature holds.

    Nothing else of it is used: names come from the token or the caller's own certificate.

    Raises:
        InvalidRequest: it is no request, of another kind of key, or its signature is wrong.
    """
    if len(pem) > PEM_CHARS_MAX:
        raise InvalidRequest("the certificate request is too long", field="request_pem")
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        key = request.public_key()
        valid = request.is_signature_valid
    except (ValueError, UnicodeEncodeError, TypeError) as error:
        raise InvalidRequest("this is not a certificate request", field="request_pem") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidRequest("the key of the request is not Ed25519", field="request_pem")
    if not valid:
        raise InvalidRequest("the request is not signed by its own key", field="request_pem")
    return key


# Reading ---------------------------------------------------------------------------------


def load_certificate(pem: str) -> x509.Certificate:
    """Return the first certificate in `pem`.

    Raises:
        InvalidRequest: there is none.
    """
    return load_chain(pem)[0]


def load_chain(pem: str) -> list[x509.Certificate]:
    """Return all certificates in `pem`, in order.

    Raises:
        InvalidRequest: there is none, or one is broken.
    """
    if len(pem) > PEM_CHARS_MAX:
        raise InvalidRequest("too long for a certificate chain", field="pem")
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except (ValueError, UnicodeEncodeError) as error:
        raise InvalidRequest("this is not a certificate in PEM form", field="pem") from error


def pem_of(*certificates: x509.Certificate) -> str:
    """Return `certificates` as PEM, in order."""
    encoded = (cert.public_bytes(serialization.Encoding.PEM).decode() for cert in certificates)
    return "".join(encoded)


def pem_of_key(key: Ed25519PrivateKey) -> bytes:
    """Return a private key as PEM, for a file that only its owner reads."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def load_key(pem: bytes) -> Ed25519PrivateKey:
    """Return the private key in `pem`.

    Raises:
        InvalidRequest: it is not an Ed25519 key in PEM form.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise InvalidRequest("this is not a private key in PEM form", field="key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidRequest("the key is not Ed25519", field="key")
    return key


def public_key_of(certificate: x509.Certificate) -> Ed25519PublicKey:
    """Return the Ed25519 key of a certificate of ours.

    Raises:
        InvalidRequest: it has another kind of key.
    """
    key = certificate.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidRequest("the certificate's key is not Ed25519", field="pem")
    return key


def fingerprint_of(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate, in hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def key_identifier(public_key: Ed25519PublicKey) -> bytes:
    """Return X.509's subject key identifier of a key."""
    return x509.SubjectKeyIdentifier.from_public_key(public_key).digest


def serial_of_authority(identifier: bytes) -> int:
    """Return the serial number of the site authority whose key has `identifier`."""
    return int.from_bytes(b"\x01" + identifier[:16], "big")  # positive, under 20 octets


def issuer_serial_of(certificate: x509.Certificate) -> int:
    """Return the serial number of the site authority that issued a leaf.

    Raises:
        Unauthenticated: the leaf does not say who issued it.
    """
    try:
        extension = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except x509.ExtensionNotFound:
        raise Unauthenticated("the certificate does not say which key issued it") from None
    return serial_of_authority(extension.value.key_identifier or b"")


def identity_of_certificate(certificate: x509.Certificate) -> Identity:
    """Return the identity that a daemon's certificate carries.

    Raises:
        Unauthenticated: it carries none, several, or two that differ.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise Unauthenticated("the certificate names no identity") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise Unauthenticated(f"the certificate names {len(uris)} identities, not one")
    identity = parse_identity(uris[0])
    if names.get_values_for_type(x509.DNSName) != [identity.dns_name]:
        raise Unauthenticated(f"the certificate of {identity} has another DNS name")
    return identity


def require_issued(
    certificate: x509.Certificate, issuer: x509.Certificate, *, now_s: float | None
) -> None:
    """Check that `issuer` signed `certificate` and, unless `now_s` is None, that it is in date.

    Raises:
        Unauthenticated: it did not, or it is not.
    """
    subject = certificate.subject.rfc4514_string()
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise Unauthenticated(
            f"{subject} was not issued by {issuer.subject.rfc4514_string()}"
        ) from error
    if now_s is None:
        return
    if not not_before_s(certificate) <= now_s <= not_after_s(certificate):
        raise Unauthenticated(f"the certificate of {subject} is out of date")


def not_before_s(certificate: x509.Certificate) -> float:
    """Return when a certificate begins to hold."""
    return certificate.not_valid_before_utc.timestamp()


def not_after_s(certificate: x509.Certificate) -> float:
    """Return when a certificate ceases to hold."""
    return certificate.not_valid_after_utc.timestamp()


def site_domain(federation_id: FederationId, site_id: SiteId) -> str:
    """Return the DNS domain that all certificates of a site lie in."""
    return f"{site_id}.{federation_id}.{DNS_SUFFIX}"


def signer_dns_name(federation_id: FederationId, site_id: SiteId) -> str:
    """Return the DNS name in the certificate of a site's signing key."""
    return f"signer.{site_domain(federation_id, site_id)}"


def site_authority_name(site_id: SiteId) -> str:
    """Return the common name of a site's authority."""
    return f"{site_id} site authority"


def require_site_authority(
    certificate: x509.Certificate,
    root: x509.Certificate,
    *,
    federation_id: FederationId,
    site_id: SiteId,
    now_s: float | None,
) -> None:
    """Check that `certificate` is the authority of `site_id`, given by the root.

    Raises:
        Unauthenticated: it is not.
    """
    require_issued(certificate, root, now_s=now_s)
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound as error:
        raise Unauthenticated("the certificate is not a site authority's") from error
    domains = [
        name.value
        for name in constraints.permitted_subtrees or ()
        if isinstance(name, x509.DNSName)
    ]
    if not basic.ca or domains != [site_domain(federation_id, site_id)]:
        raise Unauthenticated(f"the certificate is not the authority of site {site_id!r}")


def require_signer(
    certificate: x509.Certificate,
    authority: x509.Certificate,
    *,
    federation_id: FederationId,
    site_id: SiteId,
    now_s: float | None,
) -> None:
    """Check that `certificate` is a signing key of `site_id`, given by its authority.

    Raises:
        Unauthenticated: it is not.
    """
    require_issued(certificate, authority, now_s=now_s)
    names = _dns_names(certificate)
    if names != [signer_dns_name(federation_id, site_id)]:
        raise Unauthenticated(f"the certificate is not a signer's of site {site_id!r}")


def _dns_names(certificate: x509.Certificate) -> Sequence[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return names.get_values_for_type(x509.DNSName)


def federation_of_root(root: x509.Certificate) -> FederationId:
    """Return the federation that a root stands for.

    Raises:
        InvalidRequest: it is not a federation's root.
    """
    units = root.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    try:
        federation = FederationId(str(units[0].value))
        require_slug(federation, "federation_id")
    except (IndexError, NuageError) as error:
        raise InvalidRequest("the certificate is not a federation's root") from error
    return federation


# Building --------------------------------------------------------------------------------


def _name(common_name: str, federation_id: FederationId) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation_id),
            # X.520 allows 64 characters; the full name stands in the alternative name
            x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64]),
        ]
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: Ed25519PublicKey,
    *,
    now_s: float,
    life_s: float,
    serial: int | None = None,
) -> x509.CertificateBuilder:
    now = datetime.fromtimestamp(int(now_s), UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(serial if serial is not None else x509.random_serial_number())
        .not_valid_before(now - timedelta(seconds=SKEW_S))
        .not_valid_after(now + timedelta(seconds=life_s))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _usage(*, issues: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not issues,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=issues,
        crl_sign=issues,
        encipher_only=False,
        decipher_only=False,
    )


def _issued_by(authority: Authority) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
