"""Send queues are bounded once, and an operator's own bound stays."""

from pathlib import Path

from nuage.vnode.send_queue import UNBOUNDED, UNSENT_BYTES_MAX, shorten_send_queues


def test_an_unbounded_queue_is_bounded_and_a_chosen_bound_stays(tmp_path: Path) -> None:
    setting = tmp_path / "tcp_notsent_lowat"
    setting.write_text(f"{UNBOUNDED}\n")
    shorten_send_queues(setting)
    assert int(setting.read_text()) == UNSENT_BYTES_MAX
    setting.write_text("500000\n")
    shorten_send_queues(setting)
    assert int(setting.read_text()) == 500_000


def test_a_node_that_may_not_set_it_goes_on(tmp_path: Path) -> None:
    shorten_send_queues(tmp_path / "not there")
