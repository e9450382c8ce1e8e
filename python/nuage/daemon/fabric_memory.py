"""What an RBridge's process remembers on disk, so that a restart changes nothing.

Port numbers by interface, the nickname, the taps and trunks that stand, and the last wish. The
forwarding plane has the rest: it goes on while no process runs.
"""

from pathlib import Path
from typing import Final

import msgspec

from nuage.errors import UNREADABLE, CorruptData, Unavailable
from nuage.ids import PortId, VmId
from nuage.model.desired import PortWish
from nuage.model.fabric import FabricWish
from nuage.trust.files import write_atomically

PORT_NUMBER_MAX: Final = 4095


class TapMemory(msgspec.Struct, frozen=True, kw_only=True):
    """A VM's tap. `present`: the VM is here, not still or already elsewhere."""

    vm_id: VmId
    port: PortWish
    tap: str
    present: bool = True


class TrunkMemory(msgspec.Struct, frozen=True, kw_only=True):
    """A trunk that stands: `made_of` says by which wish, to see when it has to be made anew."""

    interface: str
    made_of: str
    mtu_bytes: int
    driver: str = ""
    tunnel: str = ""


class FabricMemory(msgspec.Struct, kw_only=True):
    """All of it."""

    nickname: int = 0
    numbers: dict[str, int] = {}
    taps: dict[PortId, TapMemory] = {}
    trunks: dict[str, TrunkMemory] = {}
    wish: FabricWish | None = None


class FabricNotebook:
    """The memory and its file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.memory = FabricMemory()

    def load(self) -> None:
        """Read the file, if there is one.

        Raises:
            CorruptData: it does not parse; moved aside, the process begins anew.
        """
        try:
            self.memory = msgspec.json.decode(self._path.read_bytes(), type=FabricMemory)
        except FileNotFoundError:
            return
        except UNREADABLE as error:
            raise CorruptData(
                f"{self._path} does not parse: {error}",
                where=str(self._path),
                hint="move it aside: the RBridge then begins anew, with another nickname",
            ) from error

    def save(self) -> None:
        """Write the file; it holds the fabric's key."""
        write_atomically(self._path, msgspec.json.encode(self.memory), secret=True)

    def number_of(self, interface: str) -> int:
        """Return the port number of an interface, a free one at its first mention.

        Raises:
            Unavailable: all numbers are taken.
        """
        numbers = self.memory.numbers
        if interface not in numbers:
            taken = set(numbers.values())
            free = next((n for n in range(1, PORT_NUMBER_MAX + 1) if n not in taken), None)
            if free is None:
                raise Unavailable(f"port {interface} would be one of {PORT_NUMBER_MAX} and more")
            numbers[interface] = free
        return numbers[interface]

    def forget_number(self, interface: str) -> None:
        """Let an interface's number be used again."""
        self.memory.numbers.pop(interface, None)
