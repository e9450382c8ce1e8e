"""Quotas as people write and read them."""

import pytest

from nuage.cli.quotas import quotas, told_quota
from nuage.errors import InvalidRequest
from nuage.units import TIB


def test_what_is_written_changes_that_alone() -> None:
    known: dict[str, object] = {"vm_count": 100, "memory_mib": 1024, "volume_bytes": TIB}
    assert quotas(("vms=3", "memory=64G"), known) == known | {"vm_count": 3, "memory_mib": 65536}
    assert quotas((), known) == known
    assert quotas(("volumes=2T",)) == {"volume_bytes": 2 * TIB}


@pytest.mark.parametrize("text", ["vms", "cats=3", "vms=many", "memory=64Q", "vcpus=4.5"])
def test_what_is_no_quota_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is no quota"):
        quotas((text,))


def test_bytes_are_told_as_sizes() -> None:
    row: dict[str, object] = {"resource": "MiB of memory", "used": 128, "limit": 1024 * 1024}
    assert told_quota(row) == ("memory", "128 MiB", "1 TiB")
    assert told_quota({"resource": "VMs", "used": 1, "limit": 100}) == ("VMs", 1, 100)
