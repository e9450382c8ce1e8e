"""Says in an agent's log which API request is behind what it is told to do.

A wish is a whole desired state and no request; each VM in it bears the id of the API request that
changed it last. So one id can be followed from the API over the channels to the node.
"""

from collections.abc import Iterable

import structlog

from nuage.ids import VmId
from nuage.model.desired import VmWish

log = structlog.get_logger("trail")


class RequestTrail:
    """Remembers each VM's last request; tells of new ones once."""

    def __init__(self) -> None:
        self._seen: dict[VmId, str] = {}

    def take(self, wishes: Iterable[VmWish]) -> None:
        """Log what is newly asked of the node's VMs, under the id of who asked."""
        present = {wish.vm_id: wish for wish in wishes}
        for vm_id, wish in present.items():
            if wish.request_id and self._seen.get(vm_id) != wish.request_id:
                log.info(
                    "wished", vm=vm_id, wish=wish.wish.value, epoch=wish.epoch,
                    request_id=wish.request_id,
                )  # fmt: skip
        self._seen = {vm_id: wish.request_id for vm_id, wish in present.items()}
