"""What a rebuilt quorum is told of owners: what others may take over, by the records' own word."""

from dataclasses import replace

from tests.unit.iaas.iaas_makers import IAAS, LYON, MARNE, iaas, record, vm, volume

from nuage.daemon.recovery import known_owners
from nuage.iaas.epochs import EPOCH_STEP, FIRST_EPOCH
from nuage.iaas.index import FederationIndex
from nuage.model.contract import Contract, CutOffRule
from nuage.model.vm import PowerWish
from nuage.quorum.model import Ownership

HERE, THERE = ("marne", "marne-io1"), ("lyon", "lyon-io1")


def owners(cut_off: CutOffRule) -> set[Ownership]:
    """Return what is told of one federation whose VMs are under a contract."""
    index = FederationIndex(MARNE)
    moved = vm(2, site="lyon", epoch=2 * EPOCH_STEP + 3)
    for each in (
        record(iaas(Contract(cut_off=cut_off))),
        record(vm(1, site="marne", epoch=FIRST_EPOCH + 1)),
        record(moved, home="lyon"),
        record(replace(moved, epoch=FIRST_EPOCH)),  # as its former home has it still
        record(vm(3, site="marne", epoch=FIRST_EPOCH)),  # nobody has decided that it is here
        record(replace(vm(4, site="marne", epoch=2 * EPOCH_STEP), wish=PowerWish.DELETED)),
        record(volume(1, places=(HERE, THERE))),
        record(volume(2, places=(HERE,))),
        record(volume(3, places=(THERE,), epoch=3 * EPOCH_STEP), home="lyon"),
    ):
        index.put(each)
    assert index.value(type(moved), moved.vm_id).iaas_id == IAAS
    return set(known_owners(index))


def test_what_has_moved_and_what_has_copies_elsewhere_has_an_owner() -> None:
    told = owners(CutOffRule.STAY)
    assert told == {
        Ownership(kind="vm", id="vm-2", owner=LYON, epoch=2),
        Ownership(kind="volume", id="vol-1", owner=MARNE, epoch=1),
        Ownership(kind="volume", id="vol-3", owner=LYON, epoch=3),
    }


def test_what_may_fail_over_has_one_though_it_never_moved() -> None:
    more = owners(CutOffRule.FAIL_OVER) - owners(CutOffRule.STAY)
    assert more == {Ownership(kind="vm", id="vm-1", owner=MARNE, epoch=1)}
