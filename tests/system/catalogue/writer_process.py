"""Writes to a catalogue from several tasks and prints each acknowledged write; is killed."""

import asyncio
import sys
from pathlib import Path

from tests.contract.catalogue.catalogue_makers import decision, vm

from nuage.catalogue.sqlite import SqliteCatalogue
from nuage.catalogue.store import Put
from nuage.clock import SystemClock
from nuage.ids import SiteId

WRITERS = 8


async def write_for_ever(catalogue: SqliteCatalogue, writer: int, first: int) -> None:
    number = first
    while True:
        identity = writer * 10_000_000 + number
        records = await catalogue.write([Put(value=vm(identity)), Put(value=decision(identity))])
        sys.stdout.write(f"{identity} {records[0].revision}\n")
        sys.stdout.flush()
        number += 1


async def main(path: Path, first: int) -> None:
    catalogue = await SqliteCatalogue.open(path, site=SiteId("marne"), clock=SystemClock())
    async with asyncio.TaskGroup() as group:
        for writer in range(WRITERS):
            group.create_task(write_for_ever(catalogue, writer, first))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
