"""The checker runs by itself: whatever lies or runs outside its contract is told, and counted.

Placement refuses it, so there is nothing to find. That is looked at again all the same, at the home
of each IaaS: from the records and from the receipts that nodes of every site have signed.
"""

from dataclasses import dataclass, field
from typing import Final

import structlog

from nuage.errors import NuageError
from nuage.iaas.provenance import ContractCheck, Finding, check_contract
from nuage.iaas.site import Site
from nuage.ids import IaasId
from nuage.model.iaas import Iaas

FIRST_CHECK_S: Final = 60.0  # the feeds have come by then
CHECK_EVERY_S: Final = 600.0  # each asks every site to read its ledgers
TOLD_AT_ONCE: Final = 8  # findings in one line of the event stream
log = structlog.get_logger("contracts")


@dataclass(frozen=True, slots=True)
class Checked:
    """The last check of an IaaS, and when it was."""

    check: ContractCheck
    at_s: float
    known: frozenset[Finding] = field(default=frozenset())


class ContractWatch:
    """Checks the IaaSes whose home this site is; `last` is what each check found."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.last: dict[str, Checked] = {}

    async def watch(self) -> None:
        """Look now and then; runs for ever."""
        await self._site.clock.sleep(FIRST_CHECK_S)
        while True:
            await self.look()
            await self._site.clock.sleep(CHECK_EVERY_S)

    async def look(self) -> None:
        """Check every IaaS of this site, one after the other."""
        site = self._site
        own = [i for i in site.index.values(Iaas) if self._is_own(i.iaas_id)]
        names = {iaas.name for iaas in own}
        self.last = {name: checked for name, checked in self.last.items() if name in names}
        for iaas in own:
            try:
                check = await check_contract(site, iaas)
            except NuageError as error:
                log.warning("not checked", iaas=iaas.iaas_id, error=error.message)
                continue
            self._tell(iaas, check)

    def _is_own(self, iaas_id: IaasId) -> bool:
        return self._site.index.home("iaas", iaas_id) == self._site.site_id

    def _tell(self, iaas: Iaas, check: ContractCheck) -> None:
        before = self.last.get(iaas.name)
        known = frozenset() if before is None else before.known
        found = frozenset(check.findings)
        kept = {f for f in known if f.site in check.silent}  # a silent site has not taken it back
        self.last[iaas.name] = Checked(check, self._site.clock.now_s(), found | kept)
        fresh = sorted(found - known, key=lambda f: (f.kind, f.id))
        if fresh:
            listed = "; ".join(
                f"{f.kind} {f.id} in {f.site}: {f.reason}" for f in fresh[:TOLD_AT_ONCE]
            )
            more = f"; {len(fresh) - TOLD_AT_ONCE} more" if len(fresh) > TOLD_AT_ONCE else ""
            text = f"{iaas.name} is outside its contract: {listed}{more}"
            self._site.announce("iaas", iaas.iaas_id, "contract-broken", text)
        elif known and not found | kept:
            text = f"all of {iaas.name} is within its contract again"
            self._site.announce("iaas", iaas.iaas_id, "contract-kept", text)
