"""Echoes on a trunk: what ends an adjacency, and what only looks like silence."""

from ipaddress import ip_address
from random import Random

import pytest

from nuage.network.bfd import BfdTimers
from nuage.network.echo import ECHO_BYTES, EchoWatch
from nuage.network.line_echo import LINE_MAGIC, LineEnd, LineForm
from nuage.network.wire import internet_checksum

STEP_S = 0.005


def watch() -> EchoWatch:
    return EchoWatch(BfdTimers(interval_us=50_000, multiplier=3), Random(1))


def run(echo: EchoWatch, *, from_s: float, to_s: float, delay_s: float, lost_s: float) -> float:
    """Send when due; each comes back after `delay_s` until `lost_s`. Return when it is silent."""
    under_way: list[tuple[float, bytes]] = []
    now_s = from_s
    while now_s < to_s:
        for when_s, content in [one for one in under_way if one[0] <= now_s]:
            under_way.remove((when_s, content))
            echo.returned(content, when_s)
        if echo.silent(now_s):
            return now_s
        content_or_none = echo.due(now_s)
        if content_or_none is not None and now_s + delay_s / 2 < lost_s:
            under_way.append((now_s + delay_s, content_or_none))
        now_s += STEP_S
    return float("inf")


def test_a_dead_line_is_found_within_150_ms_and_not_before() -> None:
    for lost_s in (10.0, 10.01, 10.02, 10.03, 10.04):
        silent_s = run(watch(), from_s=5.0, to_s=12.0, delay_s=0.001, lost_s=lost_s)
        assert 0.1 <= silent_s - lost_s <= 0.155 + 2 * STEP_S


def test_a_far_neighbour_is_given_its_round_trip() -> None:
    """A round trip longer than the silence allowed flaps nothing."""
    silent_s = run(watch(), from_s=5.0, to_s=12.0, delay_s=0.25, lost_s=10.0)
    assert 10.0 < silent_s < 10.5


def test_a_neighbour_that_returns_no_echo_is_not_judged_by_them() -> None:
    assert run(watch(), from_s=5.0, to_s=12.0, delay_s=0.001, lost_s=0.0) == float("inf")


def test_echoes_that_were_never_sent_prove_nothing() -> None:
    """We were busy for ten seconds: the line is not to blame."""
    echo = watch()
    content = echo.due(5.0)
    assert content is not None
    echo.returned(content, 5.001)
    assert not echo.silent(15.0)
    assert echo.alive(15.0)


def test_an_echo_of_another_life_or_a_stranger_changes_nothing() -> None:
    echo, other = watch(), EchoWatch(BfdTimers(), Random(2))
    content = other.due(5.0)
    assert content is not None
    for stranger in (content, content[:7], b"", bytes(ECHO_BYTES)):
        echo.returned(stranger, 5.001)
    assert not echo.heard


def test_all_watches_of_a_process_send_at_the_same_moments() -> None:
    one, other = watch(), watch()
    one.due(5.0)
    other.due(5.017)
    assert one.next_deadline_s() == pytest.approx(other.next_deadline_s())
    assert one.next_deadline_s() > 5.017


def test_an_echo_on_the_line_has_the_tunnels_ports_and_a_good_checksum() -> None:
    for here, there in (("192.0.2.1", "198.51.100.9"), ("2001:db8::1", "2001:db8::2")):
        sent = LineForm(LineEnd(here, there, 51837, 1)).datagram(bytes(range(ECHO_BYTES)))
        assert sent[:4] == (51837).to_bytes(2, "big") * 2
        assert sent[8:16] == LINE_MAGIC.to_bytes(4, "big") + b"\0\0\0\1"
        assert sent[16:] == bytes(range(ECHO_BYTES))
        pseudo = ip_address(here).packed + ip_address(there).packed
        pseudo += len(sent).to_bytes(4, "big") + (17).to_bytes(4, "big")
        assert internet_checksum(pseudo + sent) == 0
