"""What the command line shows of public addresses."""

from typing import cast

from click.testing import CliRunner

from nuage.api.client import Client
from nuage.cli.addresses import address_group
from nuage.cli.fabric import fabric_group
from nuage.cli.session import Session

REPORT: dict[str, object] = {
    "node_id": "lyon-v1", "nickname": 7, "plane": "kernel", "tree_root": "", "trunks": [],
    "rbridges": [], "stations": [], "counters": {}, "drops": {}, "lisp": "tunnel router",
    "mappings": [
        {"prefix": "203.0.113.5/32", "role": "cached", "version": 129, "why": "",
         "rlocs": [{"address": "10.2.1.20", "priority": 1, "up": False},
                   {"address": "10.2.242.6", "priority": 2, "up": True}]},
    ],
}  # fmt: skip


class Canned:
    """Answers any question the same, and keeps what was asked."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str, object]] = []

    def get(self, path: str, **_query: object) -> object:
        return self.answer

    def call(self, verb: str, path: str, body: object = None) -> object:
        self.asked.append((verb, path, body))
        return self.answer


def session_of(canned: Canned) -> Session:
    return Session(_client=cast(Client, canned))


def test_the_ways_to_an_address_are_shown_and_which_of_them_is_down() -> None:
    told = CliRunner().invoke(fabric_group, ["show", "lyon-v1"], obj=session_of(Canned(REPORT)))
    assert told.exit_code == 0, told.output
    assert "public addresses: tunnel router" in told.output
    assert "10.2.1.20 (1) down" in told.output
    assert "10.2.242.6 (2)" in told.output


def test_stations_that_are_not_listed_are_counted() -> None:
    station = {"label": 7, "mac": "06:00:00:00:00:01", "nickname": 7, "port": 3, "learned": False}
    words = ["show", "lyon-v1", "--stations"]
    for count, is_told in ((1, False), (1001, True)):
        canned = Canned({**REPORT, "stations": [station], "station_count": count})
        told = CliRunner().invoke(fabric_group, words, obj=session_of(canned))
        assert told.exit_code == 0, told.output
        assert ("and 1000 more, which are not listed" in told.output) is is_told


def test_attaching_an_address_says_what_to_do_in_the_guest() -> None:
    canned = Canned({})
    words = ["attach", "203.0.113.5", "web", "--iaas", "acme"]
    told = CliRunner().invoke(address_group, words, obj=session_of(canned))
    assert told.exit_code == 0, told.output
    assert "ip addr add 203.0.113.5/32 dev eth0" in told.output
    assert canned.asked == [
        ("PUT", "/v1/iaas/acme/addresses/203.0.113.5/port", {"vm": "web"}),
    ]
