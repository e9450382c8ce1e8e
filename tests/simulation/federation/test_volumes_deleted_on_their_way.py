"""A volume that is deleted while its head goes elsewhere is gone for good, or says it stays."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from tests.simulation.federation.test_moves_step_by_step import LYON
from tests.simulation.federation.test_volumes_step_by_step import ASKS, Storage, ask, prepare

from nuage.errors import Conflict, NuageError
from nuage.iaas.heads import RELEASE_METHOD, TAKE_HEAD_METHOD
from nuage.simulation.virtual_time import run_virtually


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.reset_defaults()


class OnItsWay(Storage):
    """Somebody deletes a volume just before its home asks a node, or another site, for a thing."""

    method = ""
    name = ""
    refusal = ""
    deleting: asyncio.Future[None]

    def arm(self, method: str, name: str) -> None:
        self.method, self.name, self.refusal = method, name, ""

    def watch(self, asked: Any) -> None:
        inner = asked.ask

        async def ask(to: Any, method: str, *args: Any, **options: Any) -> object:
            if method == self.method:
                self.method = ""
                self.deleting = asyncio.ensure_future(self._delete())
                # What is on its way is waited for, and the ask goes on meanwhile.
                await asyncio.wait({self.deleting}, timeout=0.5)
            return await inner(to, method, *args, **options)

        asked.ask = ask

    async def _delete(self) -> None:
        try:
            await self.sites[LYON].perform(*ASKS["delete"](self.name))
        except NuageError as error:
            self.refusal = error.message


def test_a_volume_that_is_deleted_while_its_head_moves_does_not_come_back() -> None:
    async def main() -> str:
        storage = OnItsWay(5)
        storage.wires.slow_share = 0.0
        await storage.begin()
        lyon = storage.sites[LYON]
        storage.watch(lyon.site.nodes)
        storage.watch(lyon.site.others)
        for method, name in ((RELEASE_METHOD, "released"), (TAKE_HEAD_METHOD, "taken")):
            before = await prepare(storage, "grow", name)
            assert before is not None
            assert lyon.index.home("volume", before.volume_id) == LYON
            storage.arm(method, name)
            if method == RELEASE_METHOD:
                with pytest.raises(Conflict):
                    await ask(storage, "move", name, before)
                await storage.settle("it is deleted")
                assert storage.named(name) is None
                assert storage.refusal == ""
                continue
            await ask(storage, "move", name, before)
            await storage.deleting
            await storage.settle("it has moved, and is deleted at its new home")
            assert storage.refusal == ""
            assert lyon.site.handed_over == {}
            assert storage.named(name) is None
        assert storage.bugs == []
        return "done"

    assert run_virtually(main()) == "done"
