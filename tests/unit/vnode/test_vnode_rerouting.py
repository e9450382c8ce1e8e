"""The packet filter's rules while a disk changes its portal."""

from nuage.vnode.rerouting import ruleset


def test_each_old_portal_is_led_to_its_new_one() -> None:
    rules = ruleset({"10.0.1.1:21000": "10.0.2.1:21000", "10.0.1.2:21002": "10.0.3.1:21000"})
    assert "ip daddr 10.0.1.1 tcp dport 21000 dnat to 10.0.2.1:21000" in rules
    assert "ip daddr 10.0.1.2 tcp dport 21002 dnat to 10.0.3.1:21000" in rules
    assert rules.index("flush chain") < rules.index("add rule")


def test_the_chain_stays_for_what_was_led_on() -> None:
    rules = ruleset({})
    assert "add chain" in rules
    assert "add rule" not in rules
    assert "delete" not in rules
