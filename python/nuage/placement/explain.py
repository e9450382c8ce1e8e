"""Tell a decision afterwards, from what it saw: the rows of `nuage vm explain`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from nuage.ids import NodeId, SiteId
from nuage.model.placement import Decision

# The terms worth a column of their own, with the unit they are shown in.
SHOWN_TERMS: Final = (
    "marginal_watts", "pue", "price_eur_per_mwh", "cost_eur_per_h", "carbon_g_per_h",
    "flops", "mean_power_watts", "vcpu_free", "memory_free_mib",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainRow:
    """One candidate or refusal. `place` is 1 for the best, 0 for who was not ranked."""

    place: int
    site_id: SiteId
    node_id: NodeId | None
    outcome: str  # elected | ranked | refused | silent
    rule: str
    reason: str
    score: float | None
    terms: dict[str, float]


def explain(decision: Decision) -> tuple[ExplainRow, ...]:
    """Return the elected first, then the ranked in order, then refusals, then silent sites."""
    rows = list(_ranked_rows(decision))
    rows.sort(key=lambda row: (row.outcome != "elected", row.place))
    ranked = {row.node_id for row in rows}
    rows += [
        ExplainRow(
            place=0,
            site_id=refusal.site_id,
            node_id=refusal.node_id,
            outcome="refused",
            rule=refusal.rule,
            reason=refusal.reason,
            score=None,
            terms={},
        )
        for refusal in decision.refusals
        if refusal.node_id is None or refusal.node_id not in ranked
    ]
    rows += [
        ExplainRow(
            place=0,
            site_id=site_id,
            node_id=None,
            outcome="silent",
            rule="silent",
            reason="the site did not answer in time",
            score=None,
            terms={},
        )
        for site_id in decision.silent_sites
    ]
    return tuple(rows)


def _ranked_rows(decision: Decision) -> Iterable[ExplainRow]:
    refused = {r.node_id: r for r in decision.refusals if r.node_id is not None}
    for place, candidate in enumerate(decision.ranked, start=1):
        refusal = refused.get(candidate.node_id)
        is_elected = candidate.node_id == decision.elected
        outcome = "elected" if is_elected else "refused" if refusal is not None else "ranked"
        shown = refusal if refusal is not None and not is_elected else None
        yield ExplainRow(
            place=place,
            site_id=candidate.site_id,
            node_id=candidate.node_id,
            outcome=outcome,
            rule="" if shown is None else shown.rule,
            reason=f"lowest {decision.policy} score"
            if is_elected
            else ""
            if shown is None
            else shown.reason,
            score=candidate.score,
            terms={name: candidate.terms[name] for name in SHOWN_TERMS if name in candidate.terms},
        )
