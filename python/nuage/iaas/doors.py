"""The table of all operations, which each noun's module enters its own into."""

from nuage.iaas import (
    building,
    conditions,
    contracts,
    copies,
    disks,
    draining,
    energy,
    fabric,
    hosts,
    images,
    infrastructure,
    keys,
    machines,
    node_power,
    past,
    people,
    provenance,
    public_addresses,
    rekeying,
    revoking,
    standing,
    transfers,
    views,
    volumes,
)
from nuage.iaas.operations import OperationTable

TABLE = OperationTable()

for _module in (
    building,
    conditions,
    contracts,
    copies,
    disks,
    draining,
    energy,
    fabric,
    hosts,
    images,
    infrastructure,
    keys,
    machines,
    node_power,
    past,
    people,
    provenance,
    public_addresses,
    rekeying,
    revoking,
    standing,
    transfers,
    views,
    volumes,
):
    _module.enter(TABLE)
