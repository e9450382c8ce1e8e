"""What is told when a head does not know the moment that somebody asks for."""

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
from tests.unit.iaas.iaas_makers import iaas, record, volume

from nuage.errors import Moving, NotFound, NuageError
from nuage.iaas.index import FederationIndex
from nuage.iaas.past import find_moment
from nuage.iaas.site import Site
from nuage.ids import NodeId, SiteId

DISK = replace(volume(), head=NodeId("marne-io1"))


def site_whose_head_says(refusal: NuageError) -> Site:
    class Nodes:
        async def ask(self, *_asked: object, **_options: object) -> None:
            raise refusal

    index = FederationIndex(SiteId("marne"))
    index.put(record(iaas()))
    return cast(Site, SimpleNamespace(index=index, nodes=Nodes()))


def refusal(message: str) -> NotFound:
    error = NotFound("volume", "")
    error.message = message
    return error


async def test_a_mark_that_is_not_there_is_not_found() -> None:
    site = site_whose_head_says(refusal('no mark "noon" in the history'))
    with pytest.raises(NotFound, match="no mark in the history of disk-1: 'noon'"):
        await find_moment(site, DISK, None, None, "noon")


async def test_a_head_that_is_not_open_yet_does_not_deny_the_mark() -> None:
    """Right after a move: who asks would think that the mark was lost."""
    site = site_whose_head_says(refusal('no open head of "vol-1" here'))
    with pytest.raises(Moving, match="is being opened"):
        await find_moment(site, DISK, None, None, "noon")
