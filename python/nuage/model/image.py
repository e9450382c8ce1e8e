"""A disk image that volumes start from."""

from dataclasses import dataclass
from enum import Enum

from nuage.ids import IaasId, ImageId, SiteId


class ImageState(Enum):
    """Life of an image. `IMPORTING` shows progress in `received_bytes`."""

    IMPORTING = "importing"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A disk image. `iaas_id` None means public to the federation.

    `source_sha256` is the file's as it was sent, or has to be; `sha256` that of the raw image made
    of it, by which it is kept and checked wherever it is copied.
    """

    image_id: ImageId
    name: str
    iaas_id: IaasId | None
    sha256: str
    size_bytes: int
    state: ImageState
    received_bytes: int = 0
    sites: tuple[SiteId, ...] = ()
    failure: str = ""
    source_sha256: str = ""
    os_distro: str = ""
    os_version: str = ""
