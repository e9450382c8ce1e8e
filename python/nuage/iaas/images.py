"""Use cases on images: the record here; the bytes lie in the image store of a controller."""

from dataclasses import dataclass, replace

from nuage.errors import Conflict, InvalidRequest, NotFound
from nuage.iaas.operations import Operation, OperationTable, Shown, any_scope, anywhere
from nuage.iaas.showing import show
from nuage.iaas.site import Site
from nuage.ids import IaasId, ImageId, SiteId, new_id
from nuage.model.image import Image, ImageState
from nuage.model.volume import Volume, VolumeState
from nuage.trust.permissions import EVERYWHERE, Principal, Scope, is_allowed

SHA256_DIGITS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateImage:
    """Announce an image whose bytes will be sent next; `iaas` "" makes it public.

    `sha256` is what the file has to have, as 64 hexadecimal digits; "": whatever it has.
    """

    name: str
    iaas: str = ""
    sha256: str = ""
    os_distro: str = ""
    os_version: str = ""


@dataclass(frozen=True, slots=True)
class NameImage:
    """Name an image by id or name; `iaas` "" looks among the public ones."""

    image: str
    iaas: str = ""


@dataclass(frozen=True, slots=True)
class ListImages:
    """Ask for the images that the caller may use."""

    iaas: str = ""


def image_named(site: Site, body: NameImage) -> Image:
    """Return the image a caller names."""
    iaas_id = site.index.iaas_named(body.iaas).iaas_id if body.iaas else None
    return site.index.named(Image, body.image, iaas_id)


async def create_image(site: Site, _principal: Principal, body: CreateImage) -> Shown[Image]:
    """Enter an image that waits for its bytes."""
    iaas_id = site.index.iaas_named(body.iaas).iaas_id if body.iaas else None
    wanted = body.sha256.lower()
    if wanted and (len(wanted) != SHA256_DIGITS or not set(wanted) <= set("0123456789abcdef")):
        raise InvalidRequest("a SHA-256 has 64 hexadecimal digits", field="sha256")
    if site.index.is_name_taken(Image, body.name, iaas_id):
        there = site.index.named(Image, body.name, iaas_id)
        raise Conflict(
            f"there is an image named {body.name!r} already",
            hint="" if there.state is ImageState.READY
            else f"it is {there.state.value}: `nuage image delete`, then again",
        )  # fmt: skip
    image = Image(
        image_id=ImageId(new_id("img", site.entropy)),
        name=body.name,
        iaas_id=iaas_id,
        sha256="",
        size_bytes=0,
        state=ImageState.IMPORTING,
        source_sha256=wanted,
        os_distro=body.os_distro,
        os_version=body.os_version,
    )
    await site.save(image, unique_name=True)
    return show(site, image)


async def finish_image(
    site: Site, image_id: ImageId, *, sha256: str, source_sha256: str, size_bytes: int
) -> Shown[Image]:
    """Mark an image ready; its bytes are in this site's store."""
    image = replace(
        site.index.value(Image, image_id),
        sha256=sha256,
        source_sha256=source_sha256,
        size_bytes=size_bytes,
        received_bytes=size_bytes,
        state=ImageState.READY,
        sites=(site.site_id,),
    )
    await site.save(image)
    site.announce("image", image_id, "ready", f"image {image.name}: {size_bytes} bytes")
    return show(site, image)


async def fail_image(site: Site, image_id: ImageId, reason: str) -> None:
    """Mark an image failed, with the reason."""
    image = site.index.value(Image, image_id)
    await site.save(replace(image, state=ImageState.FAILED, failure=reason))


async def list_images(site: Site, principal: Principal, body: ListImages) -> list[Shown[Image]]:
    """Show public images and those of the IaaSes that the caller may see."""
    only = site.index.iaas_named(body.iaas).iaas_id if body.iaas else None

    def is_seen(iaas_id: IaasId | None) -> bool:
        if iaas_id is None:
            return True
        return (only is None or iaas_id == only) and is_allowed(
            principal, "image.read", Scope(iaas_id=iaas_id)
        )

    images = [image for image in site.index.values(Image) if is_seen(image.iaas_id)]
    return [show(site, image) for image in sorted(images, key=lambda i: i.name)]


async def delete_image(site: Site, _principal: Principal, body: NameImage) -> None:
    """Delete an image; volumes already filled from it stay."""
    image = image_named(site, body)
    filling = [
        v.name
        for v in site.index.values(Volume)
        if v.image_id == image.image_id and v.state is VolumeState.CREATING
    ]
    if filling:
        raise Conflict(f"image {image.name} is being copied to {', '.join(filling)}")
    await site.delete(image)


def image_scope(site: Site, body: CreateImage | NameImage) -> Scope | None:
    """Ask for the role on the IaaS of the image, or on the federation for a public one."""
    return Scope(iaas_id=site.index.iaas_named(body.iaas).iaas_id) if body.iaas else EVERYWHERE


def image_home(site: Site, body: NameImage) -> SiteId:
    """Let the site that took the image in answer."""
    try:
        return site.index.home("image", image_named(site, body).image_id)
    except NotFound:
        raise NotFound("image", body.image) from None


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    table.add(
        Operation(
            name="image.list",
            verb="GET",
            path="/v1/images",
            body=ListImages,
            result=list[Shown[Image]],
            action="federation.read",
            summary="List the images that the caller may use",
            run=list_images,
            scope=any_scope,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="image.create",
            verb="POST",
            path="/v1/images",
            body=CreateImage,
            result=Shown[Image],
            action="image.write",
            summary="Announce an image; send its bytes to /v1/images/{image}/data",
            run=create_image,
            scope=image_scope,
            home=anywhere,
            status=201,
        )
    )
    table.add(
        Operation(
            name="image.delete",
            verb="DELETE",
            path="/v1/images/{image}",
            body=NameImage,
            result=type(None),
            action="image.write",
            summary="Delete an image",
            run=delete_image,
            scope=image_scope,
            home=image_home,
        )
    )
