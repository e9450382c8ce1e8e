"""How a node's init restarts its daemons."""

from nuage.lab.init import PROVEN_AFTER_S, RESTART_FIRST_S, RESTART_MAX_S, Restarts


def test_restarts_back_off_to_a_limit_and_begin_anew_after_a_good_run() -> None:
    restarts = Restarts()
    delays = [restarts.after_exit(0.0) for _ in range(10)]
    assert delays[:3] == [RESTART_FIRST_S, 2 * RESTART_FIRST_S, 4 * RESTART_FIRST_S]
    assert delays[-1] == RESTART_MAX_S
    assert restarts.after_exit(PROVEN_AFTER_S) == RESTART_FIRST_S
