"""What the relay is told while disks are at other sites, and while heads move."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from nuage.ids import VolumeId
from nuage.vnode import rerouting
from nuage.vnode.hypervisor import IscsiDisk
from nuage.vnode.relay import Relay, RelayOptions, Way, tls_door_of
from nuage.vnode.rerouting import Rerouting

NEAR = "10.0.0.1:21000"
FAR = IscsiDisk(volume_id=VolumeId("v"), portal="10.1.0.1:21000", iqn="iqn.v", far_node="lyon-io1")
OTHER = IscsiDisk(volume_id=VolumeId("w"), portal="10.2.0.1:21002", iqn="iqn.w", far_node="x-io1")
FAR_WAY = Way("10.1.0.1:21001", "lyon-io1")
OTHER_WAY = Way("10.2.0.1:21003", "x-io1")


class NotedRelay(Relay):
    """Keeps the last word it was told."""

    def __init__(self) -> None:
        nowhere = Path("/nowhere")
        options = RelayOptions(
            binary="", folder=nowhere, key=nowhere, chain=nowhere, root=nowhere, lists=nowhere,
            own_user=False,
        )  # fmt: skip
        super().__init__(options)
        self.ways: dict[str, Way] = {}
        self.patient: frozenset[str] = frozenset()

    async def tell(self, ways: Mapping[str, Way], patient: frozenset[str]) -> frozenset[str]:
        """Note it; the first of two connections waits."""
        self.ways, self.patient, self.port = dict(ways), patient, 29_000
        return frozenset({"40001"})


@pytest.fixture
def relay() -> NotedRelay:
    return NotedRelay()


@pytest.fixture
def kernel(relay: NotedRelay, monkeypatch: pytest.MonkeyPatch) -> Rerouting:
    async def run(*command: str, text: str = "") -> str:
        lines = (
            "ESTAB 0 0 10.0.0.9:40001 10.1.0.1:21000",
            "ESTAB 0 0 10.0.0.9:40002 10.1.0.1:21000",
        )
        return "\n".join(lines) if "-Htn" in command else text

    monkeypatch.setattr(rerouting, "_run", run)
    return Rerouting(relay)


def test_the_door_for_tls_is_the_port_after_the_portals() -> None:
    assert tls_door_of("10.1.0.1:21000") == "10.1.0.1:21001"


async def test_without_a_disk_at_another_site_there_is_no_relay(
    kernel: Rerouting, relay: NotedRelay
) -> None:
    await kernel.hold(frozenset((NEAR,)))
    assert relay.port == 0


async def test_only_a_running_guest_is_waited_for(kernel: Rerouting, relay: NotedRelay) -> None:
    kernel.learn([FAR])
    async with kernel.refusable(frozenset((FAR.portal,))):
        assert relay.ways == {FAR.portal: FAR_WAY}
        assert not relay.patient
    await kernel.hold(frozenset((FAR.portal,)))
    assert relay.patient == {FAR.portal}
    async with kernel.refusable(frozenset((FAR.portal,))):
        assert not relay.patient


async def test_rules_of_a_far_portal_stay_between_a_guests_start_and_the_next_look(
    kernel: Rerouting, relay: NotedRelay
) -> None:
    kernel.learn([FAR])
    async with kernel.refusable(frozenset((FAR.portal,))):
        pass
    assert relay.ways == {FAR.portal: FAR_WAY}  # its connection lives on a translation


async def test_a_moving_head_is_followed_to_another_site_and_home(
    kernel: Rerouting, relay: NotedRelay
) -> None:
    kernel.learn([FAR, OTHER])
    await kernel.hold(frozenset((FAR.portal,)))
    async with kernel.led(FAR.portal, OTHER.portal, is_again=True):
        assert relay.ways[FAR.portal] == OTHER_WAY
        await kernel.turn(OTHER.portal, NEAR)
        assert relay.ways[FAR.portal] == Way(NEAR)  # at this site it is spoken to in clear
    assert relay.ways[FAR.portal] == FAR_WAY
    async with kernel.led(NEAR, FAR.portal, is_again=True):
        assert relay.ways[NEAR] == FAR_WAY
    assert NEAR not in relay.ways


async def test_who_waits_in_the_relay_is_not_cut(kernel: Rerouting) -> None:
    kernel.learn([FAR])
    assert await kernel._served(FAR.portal) == ("40002",)
