"""The packet filter's rules while guests use portals, and while a disk changes its own."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest

from nuage.ids import VolumeId
from nuage.vnode import rerouting
from nuage.vnode.hypervisor import IscsiDisk
from nuage.vnode.rerouting import Rerouting, ports_of, ruleset

HELD = ("10.0.1.1:21000", "10.0.1.2:21002")
WAYS = {"10.0.1.1:21000": "10.0.2.1:21000", "10.0.1.2:21002": "10.0.3.1:21000"}


def rules_of(rules: str, chain: str) -> list[str]:
    return [line for line in rules.splitlines() if line.startswith("add rule") and chain in line]


def test_each_old_portal_is_led_to_its_new_one() -> None:
    rules = ruleset((), WAYS)
    one, two = rules_of(rules, " lead ")
    assert "ip daddr 10.0.1.1 tcp dport 21000 " in one
    assert one.endswith("dnat to 10.0.2.1:21000")
    assert "ip daddr 10.0.1.2 tcp dport 21002 " in two
    assert two.endswith("dnat to 10.0.3.1:21000")
    assert rules.index("flush chain") < rules.index("add rule")


def test_only_what_begins_a_connection_is_led_and_never_our_own_look() -> None:
    for rule in rules_of(ruleset((), WAYS), " lead "):
        assert "tcp flags & (syn | ack) == syn" in rule
        assert "meta mark != " in rule


def test_a_refusal_by_a_portal_in_use_does_not_reach_the_initiator() -> None:
    for portal, rule in zip(HELD, rules_of(ruleset(HELD, {}), " hold "), strict=True):
        host, _, port = portal.partition(":")
        assert f"ip saddr {host} tcp sport {port} " in rule
        assert rule.endswith("tcp flags & (rst | ack) == (rst | ack) tcp sequence 0 drop")


def test_a_held_syn_is_tracked_only_once_there_is_somewhere_to_lead_it() -> None:
    assert len(rules_of(ruleset(HELD, {}), " repeat ")) == 2
    (left,) = rules_of(ruleset(HELD, {HELD[0]: "10.0.2.1:21000"}), " repeat ")
    assert "10.0.1.2" in left
    assert len(rules_of(ruleset(HELD, {HELD[0]: "10.0.2.1:21000"}), " hold ")) == 2


def test_the_chains_stay_for_what_was_led_on() -> None:
    rules = ruleset(HELD, {})
    assert "add chain ip nuage_disks lead" in rules
    assert "delete" not in rules


def test_nothing_is_left_once_the_last_guest_has_ended() -> None:
    assert ruleset((), {}).splitlines() == [
        "add table ip nuage_disks",
        "delete table ip nuage_disks",
    ]


def test_rules_do_not_depend_on_the_order_in_which_guests_are_found() -> None:
    assert ruleset(reversed(HELD), {}) == ruleset(HELD, {})


def test_connections_are_known_by_their_local_port() -> None:
    told = (
        "ESTAB      0      36     10.61.2.20:47604 10.61.2.120:21000\n"
        "CLOSE-WAIT 0      0      10.61.2.20:47610 10.61.2.120:21000 \n"
    )
    assert ports_of(told) == ("47604", "47610")
    assert ports_of("") == ()


def test_a_portal_to_which_the_head_came_back_is_led_nowhere_and_still_held() -> None:
    rules = ruleset(HELD, {HELD[0]: HELD[0]})
    assert rules_of(rules, " lead ") == []
    assert len(rules_of(rules, " repeat ")) == 2


FAR = "10.1.0.9:21000"


def test_a_portal_at_another_site_is_led_to_the_relay_and_left_to_nothing_else() -> None:
    rules = ruleset((FAR,), {}, (FAR,), 29_000)
    (led,) = rules_of(rules, " lead ")
    assert led.endswith("dnat to 127.0.0.1:29000")
    assert rules_of(rules, " repeat ") == []  # what is not tracked cannot be led
    (kept,) = rules_of(rules, " keep ")
    assert "ip daddr 10.1.0.9 tcp dport 21000" in kept
    assert "syn" not in kept  # no packet at all, of whichever connection
    assert kept.endswith(" drop")


def test_without_a_relay_connections_to_another_site_wait() -> None:
    rules = ruleset((FAR,), {HELD[0]: FAR}, (FAR,), 0)
    assert rules_of(rules, " lead ") == []
    assert [rule.split()[-1] for rule in rules_of(rules, " repeat ")] == ["drop", "drop"]


def test_a_head_that_comes_from_or_goes_to_another_site_is_followed() -> None:
    gone = rules_of(ruleset(HELD, {HELD[0]: FAR}, (FAR,), 29_000), " lead ")
    assert [rule.split()[-1] for rule in gone] == ["127.0.0.1:29000"] * 2
    (come,) = rules_of(ruleset((FAR,), {FAR: HELD[0]}, (FAR,), 29_000), " lead ")
    assert come.endswith(f"dnat to {HELD[0]}")


class Kernel:
    """Takes rules, and tells what is connected."""

    def __init__(self) -> None:
        self.rules = ""
        self.connected = ""
        self.is_wanted: Callable[[], None] | None = None

    async def run(self, command: Sequence[str], *, text: str = "") -> str:
        if command[0] == "ss":
            if self.is_wanted is not None:
                self.is_wanted()
            return self.connected
        self.rules = text
        return ""


FAR_DISK = IscsiDisk(volume_id=VolumeId("volume-1"), portal=FAR, iqn="iqn.x:1", far_node="io-9")


async def rules_after(kernel: Kernel, *, is_wanted: bool = False) -> str:
    """Return the rules once a guest with a disk at another site has ended."""
    led = Rerouting()
    led.learn([FAR_DISK])
    await led.hold(frozenset({FAR}))
    kernel.is_wanted = partial(led.learn, [FAR_DISK]) if is_wanted else None
    await led.hold(frozenset())
    return kernel.rules


async def test_the_way_to_a_far_portal_goes_once_nobody_has_used_it_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = Kernel()
    monkeypatch.setattr(rerouting, "run_tool", kernel.run)
    assert "10.1.0.9" in await rules_after(kernel)  # not at once
    monkeypatch.setattr(rerouting, "FAR_KEPT_S", 0.0)
    assert await rules_after(kernel) == ruleset((), {})
    assert "10.1.0.9" in await rules_after(kernel, is_wanted=True)  # by who begins meanwhile
    kernel.connected = "ESTAB 0 36 10.61.2.20:47604 10.1.0.9:21000\n"
    assert "10.1.0.9" in await rules_after(kernel)
