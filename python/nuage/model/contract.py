"""What the owner of an IaaS is promised: where, how many copies, which quality.

A contract binds everything derived from the IaaS: VMs, volumes, each replica, images,
console logs, migration targets. `refusal_of_site` is the one place that says whether a
site may hold or run anything of it; placement and storage both ask here.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from nuage.errors import InvalidRequest, SovereigntyViolation
from nuage.ids import SiteId
from nuage.model.infrastructure import Datacenter, require_country

RPO_SECONDS_MAX: Final = 7 * 86_400


class AckPolicy(Enum):
    """When a write is acknowledged (docs/protocols/replication.md)."""

    LOCAL = "local"
    METRO = "metro"
    ANY_2_OF_3 = "any-2-of-3"
    ALL = "all"


class QosClass(Enum):
    """Share of CPU, disk and network when there is not enough for all."""

    GOLD = "gold"
    SILVER = "silver"
    BRONZE = "bronze"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Operations and bytes a second that a volume may take; 0: as many as there are."""

    operations_per_s: int = 0
    bytes_per_s: int = 0

    def __post_init__(self) -> None:
        for name in ("operations_per_s", "bytes_per_s"):
            if getattr(self, name) < 0:
                raise InvalidRequest("a limit is not negative", field=f"limits.{name}")


NO_LIMITS: Final = Limits()

# What a volume of a class may take at most. Gold and silver differ in their share, not here.
LIMITS_OF_CLASS: Final = {
    QosClass.GOLD: NO_LIMITS,
    QosClass.SILVER: NO_LIMITS,
    QosClass.BRONZE: Limits(operations_per_s=2_000, bytes_per_s=128 * 1024**2),
}


WEIGHT_MAX: Final = 1000
WEIGHT_OF_CLASS: Final = {QosClass.GOLD: 8, QosClass.SILVER: 4, QosClass.BRONZE: 1}


class DiskClass(Enum):
    """What a disk is good for, the fastest first."""

    NVME = "nvme"
    SSD = "ssd"
    HDD = "hdd"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRule:
    """What an IaaS has of each disk that it shares with others, and which disks it wants.

    `reservation` is kept for it, `limit` is the most it may take, and what nobody has reserved
    is divided by `weight` (0: its class's). `disk_class` None: any.
    """

    reservation: Limits = NO_LIMITS
    limit: Limits = NO_LIMITS
    weight: int = 0
    disk_class: DiskClass | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= WEIGHT_MAX:
            raise InvalidRequest(
                f"a weight is 1 to {WEIGHT_MAX}, or 0: the class's", field="contract.disk.weight"
            )
        for name in ("operations_per_s", "bytes_per_s"):
            kept, most = getattr(self.reservation, name), getattr(self.limit, name)
            if most and kept > most:
                raise InvalidRequest(
                    f"a reservation of {kept} is above the limit of {most}",
                    field=f"contract.disk.reservation.{name}",
                )


ANY_DISK: Final = DiskRule(weight=1)


def within(asked: Limits, allowed: Limits) -> Limits:
    """Return what a volume may take that asks for `asked` where its class allows `allowed`."""

    def least(one: int, other: int) -> int:
        return min(one, other) if one and other else one or other

    return Limits(
        operations_per_s=least(asked.operations_per_s, allowed.operations_per_s),
        bytes_per_s=least(asked.bytes_per_s, allowed.bytes_per_s),
    )


class CutOffRule(Enum):
    """What may happen to a VM while its site is cut off from the majority."""

    STAY = "stay"  # it goes on where it is; nobody else starts it
    FAIL_OVER = "fail-over"  # the majority restarts it; the cut site stops its copy first


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Upper limits of an IaaS over the whole federation."""

    vm_count: int = 100
    vcpu_count: int = 400
    memory_mib: int = 1024 * 1024
    volume_bytes: int = 10 * 1024**4
    address_count: int = 16

    def __post_init__(self) -> None:
        for name in ("vm_count", "vcpu_count", "memory_mib", "volume_bytes", "address_count"):
            if getattr(self, name) < 0:
                raise InvalidRequest("a quota is not negative", field=f"contract.quota.{name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalRule:
    """How far back a volume can be read. `strict`: writers stall rather than lose history."""

    window_s: int = 86_400
    window_bytes: int = 64 * 1024**3
    strict: bool = False

    def __post_init__(self) -> None:
        for name in ("window_s", "window_bytes"):
            if getattr(self, name) < 0:
                raise InvalidRequest("a window is not negative", field=f"contract.journal.{name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RpoRule:
    """How much of the last writes may be lost with all copies but one; 0 s: whatever it is.

    A copy may lack no acknowledged write that is older than `seconds`: writers are slowed from half
    of it on, and stall at it. A copy that is cut off is let go, which is announced, and bound again
    once it is near; `strict`: writers stall for it too, until it is back or the owner decides.
    """

    seconds: int = 0
    strict: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.seconds <= RPO_SECONDS_MAX:
            raise InvalidRequest(
                f"the RPO is 0 (no bound) to {RPO_SECONDS_MAX} seconds", field="contract.rpo"
            )


NO_RPO: Final = RpoRule()


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """The rules of one IaaS. Empty `sites` or `countries` means any.

    `copies` copies of each volume rest on disks, in `copy_sites` different sites.
    """

    data_countries: tuple[str, ...] = ()
    operator_countries: tuple[str, ...] = ()
    sites: tuple[SiteId, ...] = ()
    tier_min: int = 1
    copies: int = 1
    copy_sites: int = 1
    ack_policy: AckPolicy = AckPolicy.LOCAL
    qos_class: QosClass = QosClass.SILVER
    quota: Quota = Quota()
    journal: JournalRule = JournalRule()
    rpo: RpoRule = NO_RPO
    cut_off: CutOffRule = CutOffRule.STAY
    disk: DiskRule = DiskRule()

    def __post_init__(self) -> None:
        for field in ("data_countries", "operator_countries"):
            for code in getattr(self, field):
                require_country(code, f"contract.{field}")
        if not 1 <= self.tier_min <= 4:
            raise InvalidRequest("tier_min is 1 to 4", field="contract.tier_min")
        if not 1 <= self.copies <= 3:
            raise InvalidRequest("copies is 1 to 3", field="contract.copies")
        if not 1 <= self.copy_sites <= self.copies:
            raise InvalidRequest(
                f"{self.copies} copies cannot lie in {self.copy_sites} sites",
                field="contract.copy_sites",
            )


def disk_rule(contract: Contract) -> DiskRule:
    """Return the disk rule of a contract, its weight spelled out."""
    weight = contract.disk.weight or WEIGHT_OF_CLASS[contract.qos_class]
    return replace(contract.disk, weight=weight)


@dataclass(frozen=True, slots=True)
class SiteRefusal:
    """Why a site may not serve a contract; `rule` is the contract's field."""

    site_id: SiteId
    rule: str
    reason: str


def refusal_of_site(contract: Contract, site: Datacenter) -> SiteRefusal | None:
    """Return the first rule of `contract` that `site` breaks, or None when it may serve."""
    if contract.sites and site.site_id not in contract.sites:
        allowed = ", ".join(contract.sites)
        return SiteRefusal(site.site_id, "sites", f"only {allowed} may be used")
    if contract.data_countries and site.country not in contract.data_countries:
        return SiteRefusal(site.site_id, "data_countries", f"data would lie in {site.country}")
    if contract.operator_countries and site.operator.country not in contract.operator_countries:
        return SiteRefusal(
            site.site_id,
            "operator_countries",
            f"operator {site.operator.name} answers to {site.operator.country}",
        )
    if site.tier < contract.tier_min:
        return SiteRefusal(
            site.site_id, "tier_min", f"tier {site.tier} is below {contract.tier_min}"
        )
    return None


def require_satisfiable(contract: Contract, sites: Iterable[Datacenter]) -> tuple[SiteId, ...]:
    """Return the sites that may serve `contract`, in order of id.

    Raises:
        SovereigntyViolation: no set of sites can meet it; the message has each refusal.
    """
    refusals = []
    allowed = []
    for site in sorted(sites, key=lambda site: site.site_id):
        refusal = refusal_of_site(contract, site)
        if refusal is None:
            allowed.append(site.site_id)
        else:
            refusals.append(refusal)
    if len(allowed) < contract.copy_sites:
        told = "; ".join(f"{r.site_id}: {r.reason} ({r.rule})" for r in refusals)
        plural = "" if contract.copy_sites == 1 else "s"
        raise SovereigntyViolation(
            f"the contract asks for copies in {contract.copy_sites} site{plural}, and "
            f"{len(allowed) or 'none'} may serve it: {told or 'there are no others'}",
            rule=refusals[0].rule if refusals else "copy_sites",
            hint="allow more sites, countries or a lower tier, or ask for fewer copy_sites",
        )
    return tuple(allowed)
