"""Who may do what: users, roles and where a role holds."""

from dataclasses import dataclass
from enum import Enum

from nuage.ids import UserId


class Role(Enum):
    """The five persons of Nuage (GLOSSARY.md)."""

    NUAGE_ADMIN = "nuage-admin"
    OPERATOR = "operator"  # of one datacenter
    IAAS_ADMIN = "iaas-admin"
    IAAS_USER = "iaas-user"
    AUDITOR = "auditor"


@dataclass(frozen=True, slots=True)
class Grant:
    """A role and where it holds: ``*`` (federation), a site id, or an IaaS id."""

    role: Role
    scope: str


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A person or a program. `secret_hash` is scrypt's output, never shown by any door."""

    user_id: UserId
    name: str
    grants: tuple[Grant, ...]
    secret_hash: str = ""
    disabled: bool = False
    tokens_not_before_s: float = 0.0  # tokens issued earlier are void
