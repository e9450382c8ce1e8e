"""How a copy begins on its node: empty, or as a clone of another volume's past; what it must be."""

from dataclasses import replace

import structlog

from nuage.errors import Conflict, InvalidRequest, NotFound
from nuage.ids import VolumeId
from nuage.ionode.port import DaemonSeen, StorageDaemon
from nuage.model.desired import IonodeWish, ReplicaWish

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


def check_sectors(volume_id: VolumeId, wish: IonodeWish, seen: DaemonSeen) -> None:
    """Refuse to show a volume to initiators by a copy that has other sectors.

    An agent older than volumes of 4096-byte sectors made its copies of them with the usual ones.

    Raises:
        Conflict: have the copy on this node made anew.
    """
    replicas = (replica for daemon in wish.daemons for replica in daemon.replicas)
    wanted = {replica.volume_id: replica.sector_bytes for replica in replicas}
    for copy in seen.volumes:
        sector_bytes = wanted.get(volume_id, copy.sector_bytes)
        if copy.volume_id == volume_id and copy.sector_bytes != sector_bytes:
            raise Conflict(
                f"the copy here has sectors of {copy.sector_bytes} bytes, the volume's are of "
                f"{sector_bytes}: an older IO-node made it; replace it (volume replace-copy)"
            )
