"""Which connections the packet filter keeps from guests that wait for their memory."""

from nuage.vnode.doors import Door, ruleset


def test_only_connections_to_a_door_that_come_from_elsewhere_are_dropped() -> None:
    rules = ruleset([Door(40001, "10.0.0.7"), Door(40000, "2001:db8::7")]).splitlines()
    syn = "tcp flags & (syn | ack) == syn"
    assert [rule for rule in rules if rule.startswith("tcp")] == [
        f"tcp dport 40000 {syn} ip6 saddr != 2001:db8::7 drop",
        f"tcp dport 40000 {syn} meta nfproto ipv4 drop",
        f"tcp dport 40001 {syn} ip saddr != 10.0.0.7 drop",
        f"tcp dport 40001 {syn} meta nfproto ipv6 drop",
    ]


def test_nothing_is_left_once_nobody_waits() -> None:
    assert ruleset(()).splitlines() == ["table inet nuage_doors", "delete table inet nuage_doors"]
