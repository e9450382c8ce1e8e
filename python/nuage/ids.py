"""Typed identifiers. Globally unique; the prefix tells the kind, never the place.

A site's id is a short slug its operator chose (``marne``). Every other id is
``<prefix>-<16 hex digits>`` from 64 random bits, made once at the home site.
"""

import os
import re
from collections.abc import Callable
from typing import Final, NewType

FederationId = NewType("FederationId", str)
SiteId = NewType("SiteId", str)
RackId = NewType("RackId", str)
NodeId = NewType("NodeId", str)
PduId = NewType("PduId", str)
EnergySourceId = NewType("EnergySourceId", str)
IaasId = NewType("IaasId", str)
VmId = NewType("VmId", str)
VolumeId = NewType("VolumeId", str)
ImageId = NewType("ImageId", str)
SegmentId = NewType("SegmentId", str)
PortId = NewType("PortId", str)
SecurityGroupId = NewType("SecurityGroupId", str)
PoolId = NewType("PoolId", str)
GatewayId = NewType("GatewayId", str)
UserId = NewType("UserId", str)
RequestId = NewType("RequestId", str)

EntropySource = Callable[[int], bytes]

_ID: Final = re.compile(r"[a-z]+-[0-9a-f]{16}")
_SLUG: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
SLUG_CHARS_MAX: Final = 40  # fits a DNS label with room for a suffix


def is_slug(text: str) -> bool:
    """Tell whether `text` may name a site, a node or a rack (DNS-label safe)."""
    return len(text) <= SLUG_CHARS_MAX and _SLUG.fullmatch(text) is not None


def is_id(prefix: str, text: str) -> bool:
    """Tell whether `text` has the form of an id of that kind."""
    return text.startswith(f"{prefix}-") and _ID.fullmatch(text) is not None


def new_id(prefix: str, entropy: EntropySource = os.urandom) -> str:
    """Return a fresh id ``<prefix>-<16 hex>``; wrap it in the NewType it stands for."""
    return f"{prefix}-{entropy(8).hex()}"
