"""What is asked about something on its way waits at the door, for so long and no longer."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.unit.daemon.test_energy_keeper import HandClock

from nuage.api.dispatch import MOVING_WAIT_S, AuditTrail, Authenticator, Caller, Dispatcher
from nuage.errors import Moving
from nuage.iaas.operations import Operation
from nuage.iaas.site import Site
from nuage.ids import SiteId
from nuage.trust.permissions import EVERYWHERE

HERE, THERE = SiteId("marne"), SiteId("lyon")
CALLER = Caller(token="ada", request_id="req-1", from_address="test")


class Door:
    """A site's dispatcher, and an operation on something that is on its way for a while."""

    def __init__(self, moves_for_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = HandClock()
        self.written: list[str] = []
        self.arrives_s = self.clock.monotonic_s() + moves_for_s

        async def sleep(seconds: float) -> None:
            self.clock.time_s += seconds

        async def carry(to: SiteId, *_asked: object, **_options: object) -> bytes:
            return f'"done at {to}"'.encode()

        monkeypatch.setattr(self.clock, "sleep", sleep)
        site = SimpleNamespace(
            site_id=HERE, clock=self.clock, others=SimpleNamespace(ask=carry)
        )  # fmt: skip
        nobody = SimpleNamespace(name="ada")
        monkeypatch.setattr("nuage.api.dispatch.is_allowed", lambda *_: True)
        self._dispatcher = Dispatcher(
            cast(Site, site),
            cast(Authenticator, SimpleNamespace(principal_of=lambda _token: nobody)),
            cast(AuditTrail, SimpleNamespace(note=self._note)),
        )

    def _note(self, *, outcome: str, **_rest: object) -> None:
        self.written.append(outcome)

    def _is_here(self) -> bool:
        return self.clock.monotonic_s() < self.arrives_s

    async def ask(self) -> object:
        """Ask for the operation: it moves from here to there."""

        async def run(*_asked: object) -> object:
            raise Moving("the head of disk-1 is being opened")

        operation = SimpleNamespace(
            name="volume.attach", action="volume.attach", is_read=False, is_one_write=False,
            run=run, scope=lambda *_: EVERYWHERE,
            home=lambda *_: HERE if self._is_here() else THERE,
        )  # fmt: skip
        asked = cast(Operation[object, object], operation)
        answer = await self._dispatcher.perform(asked, {"volume": "disk-1"}, CALLER)
        return cast(Any, answer.result)


async def test_it_is_begun_anew_at_its_new_home(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door(3.0, monkeypatch)
    assert bytes(cast(Any, await door.ask())) == b'"done at lyon"'
    assert door.written == []  # its home writes down what came of it


async def test_at_the_bound_it_is_refused_and_written_down_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    door = Door(MOVING_WAIT_S * 2, monkeypatch)
    begun_s = door.clock.monotonic_s()
    with pytest.raises(Moving):
        await door.ask()
    assert MOVING_WAIT_S <= door.clock.monotonic_s() - begun_s < MOVING_WAIT_S + 1
    assert door.written == ["moving"]
