"""Consoles as streams: what the guest writes comes as it writes it, keys go up as they are typed.

The way is the same whatever site was asked: the door, the VM's home, the V-node. Each leg is a
stream of the channel downwards and calls upwards, so that keys arrive in order and none is lost
unseen.
"""

from collections.abc import AsyncIterator
from typing import Final

from nuage.errors import Conflict, InvalidRequest
from nuage.iaas.site import Site
from nuage.ids import VmId
from nuage.model.console import FOLLOW_METHOD, TYPE_METHOD, FollowConsole, TypeOnConsole
from nuage.model.vm import Vm, VmState

KEYS_BYTES_MAX: Final = 4096  # at a time; a paste comes in several
TYPE_TIMEOUT_S: Final = 10.0


def _require_running(site: Site, vm_id: VmId) -> Vm:
    vm = site.index.value(Vm, vm_id)
    if vm.node_id is None or vm.state is not VmState.RUNNING:
        raise Conflict(
            f"{vm.name} is {vm.state.value}; only a running VM has a console to attach to",
            hint="`nuage vm console` prints what it wrote last",
        )
    return vm


def follow_console(site: Site, ask: FollowConsole) -> AsyncIterator[bytes]:
    """Follow the console of a VM of this site; ends when the guest's console does.

    Raises:
        Conflict: it does not run.
        Unavailable: its node is not connected.
    """
    vm = _require_running(site, ask.vm_id)
    assert vm.node_id is not None, "it runs"
    return site.nodes.subscribe(vm.node_id, FOLLOW_METHOD, ask, bytes)


async def type_on_console(site: Site, ask: TypeOnConsole) -> None:
    """Type on the console of a VM of this site.

    Raises:
        Conflict: it does not run.
        InvalidRequest: too much at a time.
    """
    if not 0 < len(ask.keys) <= KEYS_BYTES_MAX:
        raise InvalidRequest(f"1 to {KEYS_BYTES_MAX} bytes of keys at a time", field="keys")
    vm = _require_running(site, ask.vm_id)
    assert vm.node_id is not None, "it runs"
    await site.nodes.ask(vm.node_id, TYPE_METHOD, ask, type(None), timeout_s=TYPE_TIMEOUT_S)
