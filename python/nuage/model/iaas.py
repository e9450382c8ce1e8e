"""An IaaS: a tenant's virtual cluster under one contract."""

from dataclasses import dataclass

from nuage.ids import IaasId
from nuage.model.contract import Contract
from nuage.model.infrastructure import require_slug


@dataclass(frozen=True, slots=True, kw_only=True)
class Iaas:
    """A tenant's virtual cluster. `label` is its 24-bit segment and storage number."""

    iaas_id: IaasId
    name: str
    owner: str
    contract: Contract
    label: int

    def __post_init__(self) -> None:
        require_slug(self.name, "name")
