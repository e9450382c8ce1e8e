"""How a copy begins on its node: empty, or as a clone of another volume's past."""

from dataclasses import replace

import structlog

from nuage.errors import InvalidRequest, NotFound
from nuage.ionode.port import StorageDaemon
from nuage.model.desired import ReplicaWish

log = structlog.get_logger("ionode")


class OriginMissing(NotFound):
    """The past that a volume should start from is not on the node of its head."""


async def make_copy(daemon: StorageDaemon, wish: ReplicaWish, disk: str) -> None:
    """Make a copy: from the past that it starts from, empty where there is none.

    One made of a past lies where that lies, another on `disk`. A copy whose past is not here takes
    what the others have; one whose head opens here cannot.

    Raises:
        OriginMissing: its head opens here; the volume's home decides.
    """
    if wish.origin is None:
        await daemon.create(wish, disk)
        return
    try:
        await daemon.clone(wish)
    except (NotFound, InvalidRequest) as error:
        if wish.leads:
            raise OriginMissing("past", str(wish.origin.volume_id), hint=error.message) from error
        log.info("no past to start from", on=wish.volume_id, reason=error.message)
        await daemon.create(replace(wish, origin=None, joins=True), disk)
