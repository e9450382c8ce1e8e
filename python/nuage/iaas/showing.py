"""Records as every door shows them: with home, age and revision; secrets left out."""

from typing import TypeVar

from nuage.catalogue.codec import id_of, kind_of
from nuage.iaas.index import FederationIndex
from nuage.iaas.operations import Shown
from nuage.iaas.site import Site
from nuage.model.record import Noun, Record

N = TypeVar("N", bound=Noun)


def show(site: Site, value: N) -> Shown[N]:
    """Return `value`, which is in the index, as doors show it."""
    kind = kind_of(value)
    record = _record(site.index, kind, id_of(value))
    return Shown(
        kind=kind,
        id=record.id,
        site=record.home,
        age_s=round(site.age_of(record.home), 3),
        revision=record.revision,
        epoch=record.epoch,
        changed_s=record.changed_s,
        value=value,
    )


def _record(index: FederationIndex, kind: str, object_id: str) -> Record:
    record = index.find(kind, object_id)
    assert record is not None, (kind, object_id)
    return record
