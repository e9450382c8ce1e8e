"""Who is at the other end: the name that a daemon's certificate carries.

The name is the URI in the certificate's subject alternative name,
``nuage://<federation>/<site>/<role>/<node>``. Beside it stands the same as a DNS name,
``<node>.<role>.<site>.<federation>.nuage.internal``: X.509 name constraints bind a site's CA to
its own part of DNS but cannot see a URI's path, so the two must agree for either to be
believed. This module reads and writes those texts; whether a certificate may be believed is
decided by `nuage.trust`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from nuage.errors import InvalidRequest
from nuage.ids import FederationId, NodeId, SiteId, is_slug
from nuage.model.infrastructure import NodeRole

IDENTITY_SCHEME: Final = "nuage"
DNS_SUFFIX: Final = "nuage.internal"  # never resolved: names inside certificates only


@dataclass(frozen=True, slots=True)
class Identity:
    """A daemon: the role that a node plays at a site of a federation."""

    federation_id: FederationId
    site_id: SiteId
    role: NodeRole
    node_id: NodeId

    def __post_init__(self) -> None:
        for field in ("federation_id", "site_id", "node_id"):
            text = getattr(self, field)
            if not is_slug(text):
                raise InvalidRequest(f"{text!r} cannot be part of an identity", field=field)

    @property
    def uri(self) -> str:
        """Return the identity as its certificate writes it."""
        return (
            f"{IDENTITY_SCHEME}://{self.federation_id}/{self.site_id}"
            f"/{self.role.value}/{self.node_id}"
        )

    @property
    def dns_name(self) -> str:
        """Return the identity as name constraints see it."""
        return f"{self.node_id}.{self.role.value}.{self.site_id}.{self.federation_id}.{DNS_SUFFIX}"

    def __str__(self) -> str:
        return f"{self.site_id}/{self.role.value}/{self.node_id}"


def parse_identity(uri: str) -> Identity:
    """Return the identity that `uri` writes.

    Raises:
        InvalidRequest: it is not ``nuage://<federation>/<site>/<role>/<node>``.
    """
    try:
        parts = urlsplit(uri)
        scheme, federation, path = parts.scheme, parts.netloc, parts.path
        empty, site, role, node = path.split("/")
        if scheme != IDENTITY_SCHEME or empty or parts.query or parts.fragment:
            raise ValueError(uri)
        return Identity(FederationId(federation), SiteId(site), NodeRole(role), NodeId(node))
    except ValueError:
        raise InvalidRequest(
            f"{uri!r} is not nuage://<federation>/<site>/<role>/<node>", field="identity"
        ) from None


@dataclass(frozen=True, slots=True)
class Expected:
    """Whom a client means to reach; a field left None may be anyone of the federation."""

    federation_id: FederationId
    site_id: SiteId | None = None
    role: NodeRole | None = None
    node_id: NodeId | None = None

    def refusal_of(self, identity: Identity) -> str:
        """Return why `identity` is not the one expected, or "" when it is."""
        for field in ("federation_id", "site_id", "role", "node_id"):
            wanted = getattr(self, field)
            found = getattr(identity, field)
            if wanted is not None and wanted != found:
                return f"{field} is {_text(found)!r}, expected {_text(wanted)!r}"
        return ""

    def __str__(self) -> str:
        parts = (self.site_id, self.role and self.role.value, self.node_id)
        return "/".join(part or "*" for part in parts)


def _text(value: object) -> str:
    return value.value if isinstance(value, NodeRole) else str(value)


# Refuses a peer whose certificate was revoked since it was issued, by raising Forbidden.
Admission = Callable[[Identity, bytes], None]


def admit_all(identity: Identity, certificate_der: bytes) -> None:
    """Admit every identity that TLS verified: for tests, and before any revocation list."""
