"""What `nuage volume rollback|clone|at --with` do with several volumes at one marked instant."""

from typing import cast

import pytest
from click.testing import CliRunner, Result

from nuage.api.client import ApiError, Client
from nuage.cli.session import Session
from nuage.cli.storage import volume_group
from nuage.errors import Conflict, NuageError, Unavailable

ALL = "/v1/iaas/acme/volumes"


def mark(name: str, mark_id: int, sequence: int) -> dict[str, object]:
    return {
        "name": name, "mark_id": mark_id, "sequence": sequence, "time_s": 1.0, "kind": "user",
    }  # fmt: skip


class Volumes:
    """Volumes with marks and clones, and what was asked of them; `refusing` are out of reach."""

    def __init__(self, **marks: list[dict[str, object]]) -> None:
        self.marks = marks
        self.users: dict[str, str] = {}
        self.clones: dict[str, tuple[str, object]] = {}
        self.refusing: set[str] = set()
        self.kept_s: list[object] = []
        self.dropped_s = 0.0
        self.acts: list[tuple[str, str, object]] = []

    def get(self, path: str, **_query: object) -> object:
        if path == "/v1/iaas/acme/vms":
            return [{"id": "vm-1", "value": {"name": "web", "state": "running"}}]
        if path == ALL:
            return [self.get(f"{ALL}/{name}") for name in (*self.marks, *self.clones)]
        name, _, what = path.removeprefix(f"{ALL}/").partition("/")
        if what == "history":
            return {
                "marks": self.marks[name], "groups": [], "horizon_sequence": 7, "sequence": 40,
                "history_bytes": 4096, "kept_from_s": 1e9, "dropped_early_s": self.dropped_s,
            }  # fmt: skip
        if name in self.marks:
            value = {"name": name, "vm_id": self.users.get(name), "origin": None}
            return {"id": f"id-of-{name}", "value": value}
        if name not in self.clones:
            raise ApiError({"message": f"no volume {name!r}"}, "lyon", 404)
        source, sequence = self.clones[name]
        origin = {"volume_id": f"id-of-{source}", "moment": {"sequence": sequence}}
        return {"id": f"id-of-{name}", "value": {"name": name, "vm_id": None, "origin": origin}}

    def call(self, verb: str, path: str, body: dict[str, object]) -> object:
        name, _, act = path.removeprefix(f"{ALL}/").partition("/")
        if name in self.refusing:
            raise Unavailable(f"the node of {name} does not answer")
        self.acts.append((name, f"{verb} {act}", body.get("sequence", body.get("view"))))
        if act == "views" and verb == "POST":
            self.kept_s.append(body["seconds"])
        if act == "clone":
            self.clones[str(body["name"])] = (name, body["sequence"])
            return {"id": f"id-of-{body['name']}"}
        return {
            "view": f"{name}@1", "until_s": 1.0, "sequence": body.get("sequence"), "portal": "p",
            "iqn": "i", "user": "u", "secret": "s",
        }  # fmt: skip

    def delete(self, path: str, **query: object) -> object:
        return self.call("DELETE", path, query)

    def run(self, *words: str) -> Result:
        session = Session(_client=cast(Client, self))
        return CliRunner().invoke(volume_group, [*words, "--iaas", "acme"], obj=session)


@pytest.fixture
def volumes() -> Volumes:
    """Give two volumes that were marked together at two instants, and one of them later alone."""
    return Volumes(
        data=[mark("noon", 80, 3), mark("noon", 71, 10), mark("noon", 99, 30)],
        log=[mark("noon", 80, 1), mark("other", 5, 2), mark("noon", 71, 4)],
    )


def refused(result: Result) -> NuageError:
    assert isinstance(result.exception, NuageError), result.output
    return result.exception


def test_a_group_goes_back_to_the_last_instant_that_all_of_it_have(volumes: Volumes) -> None:
    assert volumes.run("rollback", "data", "@noon", "--with", "log").exit_code == 0
    assert volumes.acts == [("data", "POST rollback", 10), ("log", "POST rollback", 4)]


def test_equal_names_of_marks_made_one_by_one_are_no_instant(volumes: Volumes) -> None:
    volumes.marks["log"] = [mark("noon", 72, 4)]
    for words in (
        ("rollback", "data", "@noon", "--with", "log"),
        ("at", "data", "--time", "@noon", "--with", "log"),
        ("clone", "data", "data2", "--at", "@noon", "--with", "log=log2"),
    ):
        assert "marked one by one" in str(refused(volumes.run(*words)))
    volumes.marks["log"] = []
    assert "log has none" in str(refused(volumes.run("rollback", "data", "@noon", "--with", "log")))
    assert volumes.acts == []


@pytest.mark.parametrize("words", [("@noon", "data"), ("#10", "log"), ("@", "log")])
def test_a_group_without_a_mark_or_with_a_volume_twice_is_refused(
    volumes: Volumes, words: tuple[str, str]
) -> None:
    assert refused(volumes.run("rollback", "data", words[0], "--with", words[1]))
    assert volumes.acts == []


def test_none_goes_back_while_a_vm_uses_one_of_the_group(volumes: Volumes) -> None:
    volumes.users["log"] = "vm-1"
    told = refused(volumes.run("rollback", "data", "@noon", "--with", "log"))
    assert isinstance(told, Conflict)
    assert "web is running and uses log" in str(told)
    assert volumes.acts == []
    assert volumes.run("rollback", "data", "@noon", "--with", "log", "--force").exit_code == 0


def test_a_failure_in_the_middle_says_what_was_done_and_a_repeat_does_the_rest(
    volumes: Volumes,
) -> None:
    volumes.marks["last"] = [mark("noon", 71, 8)]
    volumes.refusing = {"log"}
    words = ("rollback", "data", "@noon", "--with", "log", "--with", "last")
    told = str(refused(volumes.run(*words)))
    assert "the node of log does not answer" in told
    assert "done before it: data" in told
    assert "not begun: last" in told
    volumes.refusing = set()
    assert volumes.run(*words).exit_code == 0
    assert [act[0] for act in volumes.acts] == ["data", "data", "log", "last"]


def test_clones_of_one_instant_that_are_there_are_not_made_twice(volumes: Volumes) -> None:
    volumes.refusing = {"log"}
    words = ("clone", "data", "data2", "--at", "@noon", "--with", "log=log2")
    assert "done before it: data" in str(refused(volumes.run(*words)))
    volumes.refusing = set()
    assert volumes.run(*words).exit_code == 0
    assert volumes.clones == {"data2": ("data", 10), "log2": ("log", 4)}
    assert len(volumes.acts) == 2


def test_no_clone_is_made_where_another_volume_has_one_of_the_names(volumes: Volumes) -> None:
    volumes.clones["log2"] = ("log", 3)
    words = ("clone", "data", "data2", "--at", "@noon", "--with", "log=log2")
    assert "no such clone" in str(refused(volumes.run(*words)))
    assert volumes.acts == []


def test_views_of_a_group_are_all_open_or_none(volumes: Volumes) -> None:
    words = ("at", "data", "--time", "@noon", "--with", "log")
    told = volumes.run(*words)
    assert told.exit_code == 0, told.output
    assert "data@1" in told.output
    assert "log@1" in told.output
    volumes.acts.clear()
    volumes.refusing = {"log"}
    assert refused(volumes.run(*words))
    assert volumes.acts == [("data", "POST views", 10), ("data", "DELETE views", "data@1")]


def test_a_view_is_kept_for_an_hour_or_as_long_as_is_said(volumes: Volumes) -> None:
    assert volumes.run("at", "data", "--time", "#10").exit_code == 0
    assert (
        volumes.run("at", "data", "--time", "@noon", "--with", "log", "--keep", "2d").exit_code == 0
    )
    assert volumes.kept_s == [3600, 172_800, 172_800]
    assert refused(volumes.run("at", "data", "--time", "#10", "--keep", "soon"))


def test_history_that_left_before_its_time_is_shown(volumes: Volumes) -> None:
    assert "before their time" not in volumes.run("history", "data").output
    volumes.dropped_s = 2e9
    told = volumes.run("history", "data").output
    assert "left before their time, last at 2033-05-1" in told
    assert "kept from 2001-09-0" in told
