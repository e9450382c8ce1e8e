"""The disks of an IO-node at work: what is left of each, and who may take how much of it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import structlog

from nuage.clock import Clock
from nuage.errors import NuageError
from nuage.ids import IaasId
from nuage.ionode.disks import DiskPlace, Usage, choose_disk, disk_reports, usage_of
from nuage.ionode.port import StorageDaemon, VolumeSeen
from nuage.ionode.shares import Divider, Share, Used
from nuage.model.contract import DiskClass, DiskRule, Limits
from nuage.model.desired import DiskReport, ShareReport

log = structlog.get_logger("ionode")


class Media:
    """Reports disks, chooses among them, and has daemons keep to their shares."""

    def __init__(
        self, places: Sequence[DiskPlace], clock: Clock, *, usage: Usage = usage_of
    ) -> None:
        self._places = places
        self._clock = clock
        self._usage = usage
        self.away: frozenset[str] = frozenset()  # they do not answer, and take nothing
        self._dividers = {place.name: Divider(place.capacity) for place in places}

    def take_in(self, places: Sequence[DiskPlace]) -> None:
        """Work with these disks from now on."""
        before, self._places = {place.name: place for place in self._places}, places
        for place in places:
            if before.get(place.name) != place:
                self._dividers[place.name] = Divider(place.capacity)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all disks."""
        return tuple(self._dividers)

    def set_capacity(self, disk: str, capacity: Limits) -> None:
        """Take what a disk was measured to do."""
        self._dividers[disk].capacity = capacity

    def reports(self, volumes: Iterable[VolumeSeen]) -> tuple[DiskReport, ...]:
        """Return how each disk stands with these volumes on it."""
        used_bytes: Counter[str] = Counter()
        for volume in volumes:
            used_bytes[volume.disk] += volume.journal_bytes
        return disk_reports(
            [place for place in self._places if place.name not in self.away],
            used_bytes,
            capacities={name: divider.capacity for name, divider in self._dividers.items()},
            usage=self._usage,
        )

    def choose(self, volumes: Iterable[VolumeSeen], wanted: DiskClass | None) -> str:
        """Return the disk for a new copy (`disks.choose_disk`)."""
        return choose_disk(self.reports(volumes), wanted)

    async def divide(
        self,
        disk: str,
        daemons: Mapping[IaasId, StorageDaemon],
        rules: Mapping[IaasId, DiskRule],
    ) -> None:
        """Divide a disk anew among the daemons that have copies there."""
        divider = self._dividers[disk]
        before = dict(divider.shares)
        for iaas_id, daemon in sorted(daemons.items()):
            limits = before.get(iaas_id, Share()).limits
            used = await self._set(iaas_id, daemon, disk, limits)
            if used is not None:
                divider.note(iaas_id, used, self._clock.monotonic_s())
        ruled = {iaas_id: rules[iaas_id] for iaas_id in daemons}
        shares = divider.divide(ruled, self._clock.monotonic_s())
        for iaas_id, share in shares.items():
            if share.limits != before.get(iaas_id, Share()).limits:
                await self._set(iaas_id, daemons[iaas_id], disk, share.limits)

    async def _set(
        self, iaas_id: IaasId, daemon: StorageDaemon, disk: str, limits: Limits
    ) -> Used | None:
        try:
            return await daemon.set_share(disk, limits)
        except NuageError as error:
            log.info("share not set", iaas=iaas_id, disk=disk, error=error.message)
            return None

    def shares(self, rules: Mapping[IaasId, DiskRule]) -> Iterator[ShareReport]:
        """Yield what each daemon may take of each disk."""
        for disk, divider in sorted(self._dividers.items()):
            for iaas_id, share in sorted(divider.shares.items()):
                if iaas_id in rules:
                    yield ShareReport(
                        iaas_id=iaas_id,
                        disk=disk,
                        rule=rules[iaas_id],
                        limits=share.limits,
                        operations_per_s=share.operations_per_s,
                        bytes_per_s=share.bytes_per_s,
                        waits=share.waits,
                    )
