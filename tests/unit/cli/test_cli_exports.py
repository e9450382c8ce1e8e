"""`nuage volume export|import` against an API that keeps volumes as bytes."""

import base64
from pathlib import Path

import pytest
from click.testing import CliRunner

from nuage.api.client import Client
from nuage.cli.exports import export_volume, import_volume
from nuage.cli.session import Session
from nuage.errors import Conflict, Unavailable

BLOCK = 4096
BLOCK_COUNT = 8


class VolumesClient(Client):
    """Answers what the two commands ask; `break_after` pieces it is gone."""

    def __init__(self) -> None:
        super().__init__("unix:/nowhere")
        self.volumes = {"v": [bytes(BLOCK)] * BLOCK_COUNT}
        self.states: dict[int, list[bytes]] = {}
        self.marks: dict[str, list[tuple[str, int]]] = {}
        self.sequence = 0
        self.views: dict[str, int] = {}
        self.break_after = -1

    def write(self, name: str, block: int, byte: int) -> int:
        """Write a block and keep the state; return its sequence."""
        self.volumes[name][block] = bytes([byte]) * BLOCK
        self.sequence += 1
        self.states[self.sequence] = list(self.volumes[name])
        return self.sequence

    def get(self, path: str, **query: object) -> object:
        """Read."""
        name, _, what = path.removeprefix("/v1/iaas/acme/volumes/").partition("/")
        if what == "":
            value = {"name": name, "state": "ready", "failure": ""}
            return {"id": f"vol-{name}", "value": value}
        if what == "history":
            marks = [{"name": n, "sequence": s} for n, s in self.marks.get(name, [])]
            return {"marks": marks, "groups": [], "sequence": self.sequence}
        now = self.states[self.views[str(query["view"])]]
        if what == "changed":
            before = self.states.get(int(str(query["since"])), [bytes(BLOCK)] * BLOCK_COUNT)
            runs = [[i * BLOCK, BLOCK] for i in range(BLOCK_COUNT) if now[i] != before[i]]
            return {"runs": runs, "size_bytes": BLOCK * BLOCK_COUNT, "complete": True}
        if self.break_after == 0:
            raise Unavailable("gone")
        self.break_after -= 1
        at, length = int(str(query["offset"])), int(str(query["length"]))
        return {"data": base64.b64encode(b"".join(now)[at : at + length]).decode()}

    def delete(self, path: str, **query: object) -> object:
        """End a view."""
        del self.views[str(query["view"])]
        return {}

    def call(self, verb: str, path: str, body: object = None) -> object:
        """Change."""
        assert isinstance(body, dict)
        name, _, what = path.removeprefix("/v1/iaas/acme/volumes").strip("/").partition("/")
        if what == "views" and verb == "POST":
            view = f"view-{len(self.views)}"
            self.views[view] = int(str(body.get("sequence", self.sequence)))
            return {"view": view, "sequence": self.views[view]}
        if what == "marks":
            self.marks.setdefault(name, []).append((str(body["name"]), self.sequence))
        if what == "data":
            if self.break_after == 0:
                raise KeyboardInterrupt
            self.break_after -= 1
            data = base64.b64decode(str(body.get("data", ""))) or bytes(body["zero_bytes"])
            for at in range(0, len(data), BLOCK):
                self.volumes[name][(body["offset"] + at) // BLOCK] = data[at : at + BLOCK]
        if not name:
            if body["name"] in self.volumes:
                raise Conflict("there is one already")
            self.volumes[str(body["name"])] = [bytes(BLOCK)] * BLOCK_COUNT
        return {}


@pytest.fixture
def client() -> VolumesClient:
    return VolumesClient()


def run(client: VolumesClient, command: str, *words: str) -> None:
    """Run a command; its NuageError goes to the caller."""

    chosen = {"export": export_volume, "import": import_volume}[command]
    result = CliRunner().invoke(chosen, [*words, "--iaas", "acme"], obj=Session(_client=client))
    if result.exception is not None:
        raise result.exception


def test_a_whole_export_and_what_changed_since_make_the_same_volume(
    client: VolumesClient, tmp_path: Path
) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    for block in (0, 1, 5):
        base = client.write("v", block, block + 1)
    run(client, "export", "v", first)
    client.write("v", 1, 0)
    client.write("v", 7, 9)
    run(client, "export", "v", second, "--since", f"#{base}")
    run(client, "import", first, "copy")
    assert client.volumes["copy"] == client.states[base]
    run(client, "import", second, "copy")
    assert client.volumes["copy"] == client.volumes["v"]
    with pytest.raises(Conflict):
        run(client, "import", second, "v")


def test_an_export_that_broke_off_goes_on_at_the_same_moment(
    client: VolumesClient, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    for block in (0, 2, 4, 6):
        moment = client.write("v", block, block + 1)
    client.break_after = 2
    with pytest.raises(Unavailable):
        run(client, "export", "v", str(file))
    client.write("v", 0, 99)
    client.break_after = -1
    run(client, "export", "v", str(file))
    run(client, "import", str(file), "copy")
    assert client.volumes["copy"] == client.states[moment]


@pytest.mark.parametrize("written_count", range(4))
def test_an_import_that_is_interrupted_goes_on_when_it_is_given_again(
    client: VolumesClient, tmp_path: Path, written_count: int
) -> None:
    """Also before its first piece is written, and when it holds what changed since."""
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    for block in (0, 2, 4, 6):
        base = client.write("v", block, block + 1)
    run(client, "export", "v", first)
    for block in (0, 1, 3, 5):
        client.write("v", block, 50 + block)
    run(client, "export", "v", second, "--since", f"#{base}")
    for file in (first, second):
        client.break_after = written_count
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run(client, "import", file, "copy")
        client.break_after = -1
        run(client, "import", file, "copy")
    assert client.volumes["copy"] == client.volumes["v"]
