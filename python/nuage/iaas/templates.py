"""Images as volumes: each IaaS keeps an image once a site, and its boot volumes start from it.

The first boot volume of an image is filled. A template is made of it: an instant clone of the
moment at which it held the image and nothing else (`IMAGE_MARK`), that nobody ever writes to. Boot
volumes of that image and size are then instant clones of the template, each copy from the
template's own on its node. Whatever is not as it should be costs time, never a VM: where there is
no template, or a node of it does not answer, a boot volume is filled; a node that has lost its copy
takes the clone's from the others.

A template shares its segments with what was made of it, and is in nobody's quota. It goes with the
last boot volume that could have used it, with its image or its IaaS, and as soon as its own copies
are not all whole: the next one is made of the next boot volume.
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace

import structlog

from nuage.errors import NuageError
from nuage.iaas.erasure import delete_with_copies, is_gone
from nuage.iaas.past import started_from
from nuage.iaas.site import Site
from nuage.iaas.volumes import (
    clones_being_made,
    ionode_spaces,
    new_volume,
    placed,
    promised_on,
    with_own_id,
)
from nuage.ids import NodeId, VolumeId
from nuage.model.contract import JournalRule
from nuage.model.history import IMAGE_MARK, Moment
from nuage.model.iaas import Iaas
from nuage.model.image import Image
from nuage.model.volume import Volume, VolumeState
from nuage.storage.heads import is_settled
from nuage.units import TIB

LOOK_EVERY_S = 2.0
# Nothing is written to a template, so what it keeps is its beginning alone, and that for good.
WHOLE_HISTORY = JournalRule(window_s=100 * 365 * 86_400, window_bytes=TIB)
BEGINNING = Moment(sequence=0)
log = structlog.get_logger("templates")


def made_here(site: Site, iaas: Iaas, volume: Volume) -> Volume:
    """Return a new volume as this site enters it: a clone of its image's template, or placed."""
    own = with_own_id(site, volume)
    template = None if own.image_id is None else template_for(site, iaas, own)
    if template is None:
        return placed(site, iaas, own)
    return started_from(own, template, BEGINNING)


def template_for(site: Site, iaas: Iaas, volume: Volume) -> Volume | None:
    """Return what a boot volume can start from at once, or None: it is filled."""
    templates = templates_of(site, iaas)
    if not templates:
        return None
    spaces = ionode_spaces(site, iaas)
    told_on, size_bytes = promised_on(site), volume.size_bytes
    usable = {
        s.node_id
        for s in spaces
        if s.is_usable and s.refusal is None and not s.shortage(size_bytes, size_bytes, told_on)
    }
    for template in templates:
        fits = (template.image_id, template.size_bytes) == (volume.image_id, volume.size_bytes)
        if fits and is_sound(template, iaas) and _nodes(template) <= usable:
            return template
    return None


def templates_of(site: Site, iaas: Iaas) -> list[Volume]:
    """Return this site's templates of an IaaS."""
    return [volume for volume in site.index.templates(iaas.iaas_id) if _is_ours(site, volume)]


def is_sound(volume: Volume, iaas: Iaas) -> bool:
    """Tell whether all copies of a volume are whole, and as many as the contract wants."""
    in_flux = volume.without or volume.catching_up or volume.leaving or volume.failure
    as_wanted = (
        len(volume.replicas) == iaas.contract.copies
        and volume.ack_policy is iaas.contract.ack_policy
    )
    return is_settled(volume) and as_wanted and not in_flux


def template_of(site: Site, iaas: Iaas, source: Volume) -> Volume:
    """Return a new template: what a boot volume was when its image had just been copied in."""
    fresh = new_volume(site, iaas, name="", size_bytes=source.size_bytes, image_id=source.image_id)
    named = replace(fresh, name=f"image.{fresh.volume_id}", is_template=True, journal=WHOLE_HISTORY)
    return started_from(named, source, Moment(mark=IMAGE_MARK))


class Templates:
    """Makes and retires this site's templates."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._tried: set[VolumeId] = set()  # boot volumes that a template was made of

    async def watch(self) -> None:
        """Look after them; runs for ever."""
        while True:
            await self._site.clock.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Retire what is not wanted, make what is missing."""
        site = self._site
        own = [volume for volume in site.index.values(Volume) if _is_ours(site, volume)]
        self._tried &= {volume.volume_id for volume in own}
        boots = [v for v in own if v.image_id is not None and not v.is_template]
        for volume in own:
            if volume.is_template and not self._is_wanted(volume, boots):
                await self._guarded(volume, self._retire)
        for volume in boots:
            if volume.origin is None and volume.volume_id not in self._tried:
                await self._guarded(volume, self._make)

    async def _guarded(self, volume: Volume, act: Callable[[Volume], Awaitable[None]]) -> None:
        try:
            await act(volume)
        except NuageError as error:  # the next one does not wait for this one
            log.warning("template", volume=volume.volume_id, error=error.message)

    def _is_wanted(self, template: Volume, boots: Collection[Volume]) -> bool:
        site = self._site
        iaas = site.index.find_value(Iaas, template.iaas_id)
        assert template.image_id is not None
        if iaas is None or site.index.find_value(Image, template.image_id) is None:
            return False
        if template.state is not VolumeState.CREATING and not is_sound(template, iaas):
            return template.settled_epoch != template.epoch and not template.failure
        places = {place.site_id for place in template.replicas}
        return any(
            (boot.iaas_id, boot.image_id) == (template.iaas_id, template.image_id)
            and places <= {place.site_id for place in boot.replicas}
            for boot in boots
        )

    async def _retire(self, template: Volume) -> None:
        if clones_being_made(self._site, template):
            return
        await delete_with_copies(self._site, template)
        text = f"{template.name} is of no use any more"
        self._site.announce("volume", template.volume_id, "retired", text)

    async def _make(self, source: Volume) -> None:
        site = self._site
        iaas = site.index.find_value(Iaas, source.iaas_id)
        if iaas is None or not is_sound(source, iaas):
            return
        kept = {(t.image_id, t.size_bytes) for t in templates_of(site, iaas)}
        assert source.image_id is not None
        has_image = site.index.find_value(Image, source.image_id) is not None
        if (source.image_id, source.size_bytes) in kept or not has_image:
            return
        self._tried.add(source.volume_id)
        template = template_of(site, iaas, source)
        await site.save(template)
        text = f"{template.name} is made of {source.name}, for what starts from its image"
        site.announce("volume", template.volume_id, "template", text)


def _is_ours(site: Site, volume: Volume) -> bool:
    home = site.index.home("volume", volume.volume_id)
    return home == site.site_id and not is_gone(site.index, volume)


def _nodes(volume: Volume) -> set[NodeId]:
    return {place.node_id for place in volume.replicas}
