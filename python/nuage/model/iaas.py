"""An IaaS: a tenant's virtual cluster under one contract."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from nuage.ids import IaasId, UserId
from nuage.model.contract import Contract
from nuage.model.infrastructure import require_slug

KEY_SHREDDED: Final = "shredded"


class KeyHolder(Enum):
    """Who can unseal the data key of an IaaS."""

    FEDERATION = "federation"  # its sites, by themselves: a restart needs nobody
    TENANT = "tenant"  # the owner, with a key of their own: a restart waits for them


@dataclass(frozen=True, slots=True, kw_only=True)
class IaasKey:
    """The data key of an IaaS, sealed. `sealed` "" and `key_id` ``KEY_SHREDDED``: destroyed.

    `earlier` are the data keys before it, the newest first, sealed under this one: what was written
    with them is still to be read. `generation` of the federation's keys it was made under: who is
    revoked later knew it.
    """

    iaas_id: IaasId
    key_id: str
    sealed: str
    holder: KeyHolder
    earlier: str = ""
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PastIaas:
    """An IaaS that was taken down: what proofs of where its volumes were say of it.

    `auditors` could trace its volumes, and may still prove its past. No role on it outlives it.
    """

    iaas_id: IaasId
    name: str
    owner: str
    contract: Contract
    deleted_s: float
    auditors: tuple[UserId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Iaas:
    """A tenant's virtual cluster. `label` is its 24-bit segment and storage number.

    `encrypted`: the blocks of its volumes lie encrypted under its own data key (`IaasKey`).
    """

    iaas_id: IaasId
    name: str
    owner: str
    contract: Contract
    label: int
    encrypted: bool = False

    def __post_init__(self) -> None:
        require_slug(self.name, "name")
