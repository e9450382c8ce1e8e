"""A catalogue's records, taken out of one file and written into another."""

from pathlib import Path

import pytest
from tests.contract.catalogue.catalogue_makers import MARNE, HandClock, user, vm

from nuage.catalogue.feed import FeedRequest, FeedSender
from nuage.catalogue.snapshot import read_catalogue, write_catalogue
from nuage.catalogue.sqlite import SqliteCatalogue
from nuage.catalogue.store import Delete, Put
from nuage.errors import Unavailable


async def test_a_restored_catalogue_holds_the_same_and_is_another_history(tmp_path: Path) -> None:
    catalogue = await SqliteCatalogue.open(tmp_path / "a.db", site=MARNE, clock=HandClock())
    await catalogue.write([Put(value=vm(1, epoch=3)), Put(value=user(1))])
    await catalogue.write([Delete(kind="user", id="user-1")])
    incarnation, (revision, records) = catalogue.incarnation, catalogue.all_records()
    with pytest.raises(Unavailable):
        read_catalogue(tmp_path / "a.db", MARNE)  # a controller has it
    await catalogue.close()

    snapshot = read_catalogue(tmp_path / "a.db", MARNE)
    assert (snapshot.cursor.incarnation, snapshot.cursor.revision) == (incarnation, revision)
    write_catalogue(tmp_path / "b.db", snapshot, revision=revision + 1000)
    restored = await SqliteCatalogue.open(tmp_path / "b.db", site=MARNE, clock=HandClock())
    assert set(restored.all_records()[1]) == set(records)
    (put,) = await restored.write([Put(value=user(2))])
    assert put.revision == revision + 1001
    # Whoever followed the first reads the second whole, wherever its cursor stood.
    sender = FeedSender(MARNE, restored.incarnation)
    for cursor in (0, revision, revision + 1000, revision + 1001):
        assert not sender.can_resume(
            FeedRequest(reader=MARNE, incarnation=incarnation, after_revision=cursor),
            head_revision=restored.revision,
            compacted_revision=restored.compacted_revision,
        )
    await restored.close()
