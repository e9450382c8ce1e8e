"""Nobody writes a volume on its way to another home; a home that is never heard ends that."""

from typing import Any, cast

import pytest
from tests.unit.daemon.test_energy_keeper import HandClock
from tests.unit.iaas.iaas_makers import volume

from nuage.catalogue.memory import MemoryCatalogue
from nuage.errors import Moving
from nuage.iaas.index import FederationIndex
from nuage.iaas.site import HAND_OVER_S_MAX, Site
from nuage.ids import SiteId

MARNE = SiteId("marne")


async def test_a_volume_that_was_handed_over_is_written_again_if_its_new_home_is_never_heard() -> (
    None
):
    clock, nobody = HandClock(), cast(Any, None)
    site = Site(
        site_id=MARNE, clock=clock, index=FederationIndex(MARNE),
        catalogue=MemoryCatalogue(site=MARNE, clock=clock), quorum=nobody, others=nobody,
        nodes=nobody, placer=nobody, announce=lambda *_words: None, on_change=lambda _change: None,
        age_of=lambda _site: 0.0,
    )  # fmt: skip
    disk = volume(1)
    await site.save(disk)
    site.hand_over(disk.volume_id)
    with pytest.raises(Moving, match="goes to another site just now"):
        await site.save(disk)
    clock.time_s += HAND_OVER_S_MAX - 1
    site.hand_over(disk.volume_id, disk.epoch + 1)
    clock.time_s += HAND_OVER_S_MAX - 1
    with pytest.raises(Moving, match="goes to another site just now"):
        await site.delete(disk)
    clock.time_s += 2
    await site.save(disk)
    assert site.handed_over == {}
