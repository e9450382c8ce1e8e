"""Until when a V-node lets fail-over VMs run, whatever its clock says."""

from types import SimpleNamespace
from typing import cast

from tests.unit.daemon.test_energy_keeper import HandClock

from nuage.daemon.agent import TERMS_MAX, HeardLeases
from nuage.daemon.vnode import VnodeProcess
from nuage.ids import IaasId, VmId
from nuage.model.desired import VmWish, VnodeWish
from nuage.model.vm import PowerWish, VmShape


def wish(lease_until_s: float, *, term: int) -> VnodeWish:
    vm = VmWish(
        vm_id=VmId("vm-1"), iaas_id=IaasId("iaas-1"), name="web", shape=VmShape(), epoch=1,
        wish=PowerWish.RUNNING, disks=(), ports=(), lease_until_s=lease_until_s,
    )  # fmt: skip
    return VnodeWish(revision=1, vms=(vm,), lease_term=term)


def leased(clock: HandClock, leases: HeardLeases, given: VnodeWish) -> float:
    """Return until when the VM may run, in seconds from now by the node's wall clock."""
    process = SimpleNamespace(_clock=clock, _channel=SimpleNamespace(leases=leases))
    taken = VnodeProcess._with_lease(cast(VnodeProcess, process), given)
    return taken.vms[0].lease_until_s - clock.now_s()


def heard(clock: HandClock, term: int, left_s: float) -> HeardLeases:
    leases = HeardLeases()
    leases.hear(term, clock.monotonic_s() + left_s)
    return leases


def test_a_controllers_clock_that_is_behind_takes_nothing_from_a_lease() -> None:
    clock = HandClock()
    behind = wish(clock.now_s() - 3600, term=7)

    assert leased(clock, heard(clock, 7, 9.0), behind) == 9.0


def test_a_controllers_clock_that_is_ahead_adds_nothing_to_a_lease() -> None:
    clock = HandClock()
    ahead = wish(clock.now_s() + 3600, term=7)

    assert leased(clock, heard(clock, 7, 9.0), ahead) == 9.0


def test_what_the_controller_does_not_allow_is_over_whatever_the_lease() -> None:
    clock = HandClock()

    assert leased(clock, heard(clock, 7, 9.0), wish(1.0, term=7)) < 0


def test_a_vm_without_a_lease_needs_none() -> None:
    clock = HandClock()

    assert leased(clock, heard(clock, 7, 9.0), wish(0.0, term=7)) == -clock.now_s()


def test_a_wish_of_an_earlier_term_does_not_rest_on_a_later_lease() -> None:
    clock = HandClock()
    leases = heard(clock, 7, 2.0)
    leases.hear(8, clock.monotonic_s() + 9.0)

    assert leased(clock, leases, wish(clock.now_s() + 60, term=7)) == 2.0
    assert leased(clock, heard(clock, 8, 9.0), wish(clock.now_s() + 60, term=7)) < 0


def test_a_wish_of_a_new_term_rests_on_the_old_lease_until_it_is_answered() -> None:
    clock = HandClock()

    assert leased(clock, heard(clock, 7, 4.0), wish(clock.now_s() + 60, term=8)) == 4.0


def test_before_any_answer_the_controllers_word_holds() -> None:
    clock = HandClock()

    assert leased(clock, HeardLeases(), wish(clock.now_s() + 5, term=7)) == 5.0


def test_a_late_answer_never_shortens_and_old_terms_are_forgotten() -> None:
    leases = HeardLeases()
    leases.hear(1, 10.0)
    leases.hear(1, 8.0)
    assert leases.until_s(1) == 10.0

    for term in range(2, 2 + TERMS_MAX):
        leases.hear(term, 20.0)
    assert leases.until_s(1) == float("-inf")
