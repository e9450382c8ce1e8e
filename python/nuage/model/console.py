"""What a controller asks a V-node about a guest's console, and the words for it."""

from dataclasses import dataclass
from typing import Final

from nuage.ids import VmId

READ_METHOD: Final = "vm.console"
FOLLOW_METHOD: Final = "vm.console.follow"
TYPE_METHOD: Final = "vm.console.type"
SCROLLBACK_BYTES: Final = 2048  # what a screen shows of the past when one attaches


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleRequest:
    """Ask for the end of what a guest wrote, or what came after `after_bytes` (-1: the end)."""

    vm_id: VmId
    bytes_max: int
    after_bytes: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleLog:
    """The end of a VM's console."""

    text: str
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowConsole:
    """Ask for what a guest writes from `after_bytes` on; negative counts from the end."""

    vm_id: VmId
    after_bytes: int = -SCROLLBACK_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeOnConsole:
    """Have `keys` typed; answered once the guest has taken them."""

    vm_id: VmId
    keys: bytes
