"""What a PDU tells of its wiring becomes the electrical path that limits placement."""

from nuage.daemon.energy_figures import _pdu_elements
from nuage.daemon.energy_pdus import OutletSeen, PduSeen
from nuage.facility.ports import BranchState


def _branch(name: str, amps: float, *outlets: str) -> BranchState:
    return BranchState(
        branch_id=name, power_watts=0.0, current_amps=0.0, rated_amps=amps, outlet_ids=outlets
    )


def test_a_protector_behind_another_is_limited_by_both() -> None:
    outlets = {number: OutletSeen(None, None) for number in ("1", "2", "3")}
    branches = (_branch("C2", 10.0, "2"), _branch("C1", 16.0, "1", "2"))
    seen = PduSeen("r1", outlets=outlets, branches=branches)
    elements = _pdu_elements(seen, set(), 32.0, "container", 0.0)
    parents = {element.name: element.parent for element in elements}
    assert parents == {
        "r1": "container", "r1 C1": "r1", "r1 C2": "r1 C1",
        "r1/1": "r1 C1", "r1/2": "r1 C2", "r1/3": "r1",
    }  # fmt: skip
