"""`nuage volume create --sector`: what is asked for, and what is refused."""

from typing import cast

import pytest
from click.testing import CliRunner

from nuage.api.client import Client
from nuage.cli.session import Session
from nuage.cli.storage import volume_group

ASKED = {"name": "data", "size_bytes": 1 << 30}


class Asked:
    def __init__(self) -> None:
        self.bodies: list[object] = []

    def call(self, _verb: str, _path: str, body: object) -> object:
        self.bodies.append(body)
        return {"id": "vol-1", "value": {"name": "data"}}


@pytest.mark.parametrize(
    ("words", "bodies"),
    [
        ([], [ASKED]),
        (["--sector", "512"], [ASKED]),
        (["--sector", "4096"], [ASKED | {"sector_bytes": 4096}]),
        (["--sector", "520"], []),
    ],
)
def test_sectors_are_asked_for_where_they_are_not_of_512_bytes(
    words: list[str], bodies: list[object]
) -> None:
    asked = Asked()
    session = Session(_client=cast(Client, asked))
    command = ["create", "data", "1G", *words, "--iaas", "acme"]
    done = CliRunner().invoke(volume_group, command, obj=session)
    assert asked.bodies == bodies
    assert (done.exit_code == 0) == bool(bodies)
