"""The checker looks again at what placement should have refused: records, and what nodes signed."""

from types import SimpleNamespace
from typing import cast

from prometheus_client import generate_latest
from tests.unit.iaas.iaas_makers import IAAS, datacenter, iaas, record, vm, volume

from nuage.daemon.metrics import ControllerMetrics
from nuage.daemon.process import new_registry
from nuage.errors import SiteUnreachable
from nuage.iaas.building import NameIaas
from nuage.iaas.contract_watch import ContractWatch
from nuage.iaas.index import FederationIndex
from nuage.iaas.provenance import AskCount, HeldCount, check_iaas
from nuage.iaas.site import Site
from nuage.ids import NodeId, SiteId, UserId, VolumeId
from nuage.model.contract import Contract
from nuage.model.record import Noun
from nuage.trust.permissions import Principal

AUDITOR = Principal(user_id=UserId("user-1"), name="eve", grants=())
FRENCH = Contract(data_countries=("FR",))


class OtherSites:
    """What other sites' ledgers hold, by site; a site that is not in it is silent."""

    def __init__(self, held: dict[str, list[HeldCount]]) -> None:
        self._held = held

    async def ask(
        self, site_id: SiteId, _method: str, _body: AskCount, _result: object, *, timeout_s: float
    ) -> list[HeldCount]:
        if site_id not in self._held:
            raise SiteUnreachable(site_id, doing=f"waited {timeout_s} s")
        return self._held[site_id]


def site_with(*values: Noun, held: dict[str, list[HeldCount]]) -> Site:
    index = FederationIndex(SiteId("marne"))
    sites = [datacenter("marne"), datacenter("zurich", country="CH")]
    for value in (*sites, iaas(FRENCH), *values):
        index.put(record(value))
    ledgers = SimpleNamespace(counts=lambda _iaas_id: {})
    here = SimpleNamespace(
        site_id=SiteId("marne"), index=index, others=OtherSites(held), ledgers=ledgers
    )
    return cast(Site, here)


async def test_what_lies_and_runs_within_the_contract_is_no_finding() -> None:
    values = (volume(1, places=(("marne", "m-io"),)), vm(site="marne", node_id="m-v1"))
    check = await check_iaas(site_with(*values, held={"zurich": []}), AUDITOR, NameIaas(IAAS))
    assert (check.vm_count, check.copy_count, check.findings) == (1, 1, ())


async def test_a_receipt_signed_abroad_is_found_though_no_record_tells_of_it() -> None:
    signed = HeldCount(node_id=NodeId("z-io"), volume_id=VolumeId("vol-1"), receipt_count=3)
    here = site_with(volume(1, places=(("marne", "m-io"),)), held={"zurich": [signed]})
    check = await check_iaas(here, AUDITOR, NameIaas(IAAS))
    assert check.receipt_count == 3
    (finding,) = check.findings
    assert (finding.kind, finding.id, finding.site) == ("receipt", "vol-1 on z-io", "zurich")
    assert finding.rule == "data_countries"


async def test_a_copy_and_a_vm_abroad_are_found_and_a_silent_site_is_named() -> None:
    values = (volume(1, places=(("zurich", "z-io"),)), vm(site="zurich", node_id="z-v1"))
    check = await check_iaas(site_with(*values, held={}), AUDITOR, NameIaas(IAAS))
    assert sorted(finding.kind for finding in check.findings) == ["copy", "vm"]
    assert check.silent == ("zurich",)


async def test_the_checker_tells_once_what_it_finds_and_when_it_is_gone() -> None:
    signed = HeldCount(node_id=NodeId("z-io"), volume_id=VolumeId("vol-1"), receipt_count=3)
    held: dict[str, list[HeldCount]] = {"zurich": [signed]}
    here = site_with(volume(1, places=(("marne", "m-io"),)), held=held)
    told: list[tuple[str, str]] = []
    here.announce = lambda _kind, _id, what, text: told.append((what, text))
    here.clock = SimpleNamespace(now_s=lambda: 7.0)
    watch, metrics = ContractWatch(here), ControllerMetrics(new_registry())
    await watch.look()
    await watch.look()
    ((what, text),) = told
    assert (what, "vol-1 on z-io" in text, "zurich" in text) == ("contract-broken", True, True)
    metrics.show_checks(watch.last)
    shown = generate_latest(metrics.registry).decode()
    assert 'nuage_contract_findings{iaas="tenant-1"} 1.0' in shown
    assert 'nuage_contract_checked_timestamp_seconds{iaas="tenant-1"} 7.0' in shown
    del held["zurich"]  # a site that does not answer takes nothing back
    await watch.look()
    assert len(told) == 1
    held["zurich"] = []
    await watch.look()
    await watch.look()
    assert [what for what, _ in told] == ["contract-broken", "contract-kept"]
    metrics.show_checks(watch.last)
    assert (
        'nuage_contract_findings{iaas="tenant-1"} 0.0' in generate_latest(metrics.registry).decode()
    )
