"""Images as volumes: each IaaS keeps an image once a site, and its boot volumes start from it.

The first boot volume of an image has a template made beside it: a volume of the IaaS, placed by
its contract, filled with the image and marked (`IMAGE_MARK`). Every boot volume is then an instant
clone of the template at that mark, on each node that holds it. A template goes with its image or
its IaaS; what started from it shares its segments and stays.
"""

from dataclasses import replace

from nuage.iaas.past import started_from
from nuage.iaas.site import Site
from nuage.iaas.volumes import clones_being_made, new_volume, placed, with_own_id
from nuage.ids import ImageId
from nuage.model.history import IMAGE_MARK, Moment
from nuage.model.iaas import Iaas
from nuage.model.image import Image
from nuage.model.volume import Volume, VolumeState


def made_here(site: Site, iaas: Iaas, volume: Volume) -> tuple[Volume, Volume | None]:
    """Return a new volume as this site enters it, and a template to be entered with it."""
    own = with_own_id(site, volume)
    if own.image_id is None:
        return placed(site, iaas, own), None
    known = template_of(site, iaas, own.image_id)
    template = known or _new_template(site, iaas, own.image_id)
    return started_from(own, template, Moment(mark=IMAGE_MARK)), None if known else template


def template_of(site: Site, iaas: Iaas, image_id: ImageId) -> Volume | None:
    """Return this site's template of an image for an IaaS, if all its copies are whole."""
    for volume in site.index.of_iaas(Volume, iaas.iaas_id):
        is_ours = site.index.home("volume", volume.volume_id) == site.site_id
        is_usable = volume.state in (VolumeState.READY, VolumeState.CREATING)
        is_whole = not (volume.without or volume.catching_up or volume.leaving)
        if volume.is_template and volume.image_id == image_id and is_ours and is_usable:
            return volume if is_whole else None
    return None


def _new_template(site: Site, iaas: Iaas, image_id: ImageId) -> Volume:
    image = site.index.value(Image, image_id)
    fresh = new_volume(
        site, iaas, name=f"image.{image_id}", size_bytes=image.size_bytes, image_id=image_id
    )
    return placed(site, iaas, replace(fresh, name=f"image.{fresh.volume_id}", is_template=True))


def is_useless(site: Site, volume: Volume) -> bool:
    """Tell whether a template can go: image or IaaS are no more, and nothing waits for it."""
    if not volume.is_template or volume.image_id is None:
        return False
    is_wanted = (
        site.index.find_value(Image, volume.image_id) is not None
        and site.index.find_value(Iaas, volume.iaas_id) is not None
    )
    return not is_wanted and not clones_being_made(site, volume)
