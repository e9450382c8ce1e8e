"""A disk that cannot be plugged in at first: what was begun for it never stands in its way."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.vnode.test_vnode_repointing import FIRST, VM, NoKernel, running

from nuage.ids import VolumeId
from nuage.vnode.guest import Guest
from nuage.vnode.qemu import QemuHypervisor
from nuage.vnode.qmp import Json, QmpError

OTHER = replace(FIRST, volume_id=VolumeId("volume-2"), chap_user="u", chap_secret="s" * 16)


class NamingGuest(Guest):
    """Its monitor keeps names as QEMU does: none is given twice."""

    names: set[str]
    is_let_in = False

    async def execute(self, name: str, arguments: Mapping[str, Json] | None = None) -> Json:
        """Take a name, give it back, or refuse."""
        fields = arguments or {}
        named = str(fields.get("node-name") or fields.get("id"))
        match name:
            case "blockdev-add" if not self.is_let_in:
                raise QmpError("GenericError", "Authentication failure", command=name)
            case "object-add" | "blockdev-add" | "device_add":
                if named in self.names:
                    raise QmpError("GenericError", f"duplicate {named}", command=name)
                self.names.add(named)
            case "object-del" | "blockdev-del":
                if named not in self.names:
                    raise QmpError("GenericError", f"no {named}", command=name)
                self.names.remove(named)
        return {}


def naming(folder: Path) -> tuple[QemuHypervisor, NamingGuest]:
    """Return a hypervisor with one guest, whose slot 1 is free."""
    hypervisor, slow = running(folder, NoKernel())
    guest = NamingGuest(folder / VM, slow.record, lambda _vm_id: None)
    guest.names = set()
    hypervisor._guests[VM] = guest
    return hypervisor, guest


async def test_a_disk_whose_target_refused_the_login_is_plugged_in_once_it_lets_in(
    tmp_path: Path,
) -> None:
    hypervisor, guest = naming(tmp_path)
    with pytest.raises(QmpError, match="Authentication failure"):
        await hypervisor.attach_disk(VM, 1, OTHER)
    assert not guest.names
    guest.is_let_in = True
    await hypervisor.attach_disk(VM, 1, OTHER)


async def test_an_agent_that_ended_while_it_plugged_a_disk_in_does_it_after_all(
    tmp_path: Path,
) -> None:
    hypervisor, guest = naming(tmp_path)
    guest.is_let_in = True
    await hypervisor.attach_disk(VM, 1, OTHER)
    plugged = guest.names - {"dev1"}
    (tmp_path / "again").mkdir()
    hypervisor, guest = naming(tmp_path / "again")
    guest.is_let_in, guest.names = True, set(plugged)  # all but the device itself
    await hypervisor.attach_disk(VM, 1, OTHER)
    assert guest.names == {*plugged, "dev1"}
