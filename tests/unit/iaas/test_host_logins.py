"""Whoever runs a host that has a volume hears that its secret is another."""

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

from tests.unit.iaas.iaas_makers import datacenter, record, volume

from nuage.iaas.hosts import tell_new_logins
from nuage.iaas.index import FederationIndex
from nuage.iaas.site import Site
from nuage.ids import SiteId
from nuage.model.volume import OutsideHost

HOST = OutsideHost(initiator="iqn.2026-01.org.example:host1", login="host-1")


def test_a_new_secret_of_a_host_is_announced_by_the_home_of_its_volume_alone() -> None:
    given = replace(volume(), host=HOST)
    free = volume(2)
    told: list[tuple[str, ...]] = []
    for site_id in (SiteId("marne"), SiteId("lyon")):
        index = FederationIndex(site_id)
        for noun in (datacenter("marne"), given, free):
            index.put(record(noun))
        site = SimpleNamespace(
            site_id=site_id, index=index, announce=lambda *event: told.append(event)
        )
        tell_new_logins(cast(Site, site))
    ((kind, volume_id, what, text),) = told
    assert (kind, volume_id, what) == ("volume", given.volume_id, "host-secret")
    assert f"nuage volume attach {given.name} --initiator {HOST.initiator}" in text
