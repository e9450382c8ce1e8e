"""The one table of what can be asked of a federation, by whom, and which site answers.

An operation is a typed request with a typed answer. The HTTP API, the channel between sites and
the OpenAPI document are all read off this table: there is no second list. Any site takes any
operation; when its object has its home elsewhere, the operation is carried there whole.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from nuage.errors import NotFound
from nuage.iaas.site import Site
from nuage.ids import NodeId, SiteId
from nuage.model.infrastructure import Node
from nuage.trust.permissions import EVERYWHERE, Principal, Scope

B = TypeVar("B")
R = TypeVar("R")

Run = Callable[[Site, Principal, B], Awaitable[R]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation(Generic[B, R]):
    """One thing that can be asked.

    `path` has the body's fields in braces; for GET the other fields come from the query, else
    from the JSON body. `action` is one of `trust.permissions.TABLE`; `scope` says where the
    caller's role must hold (None: anywhere will do), `home` which site answers (None: any may).
    `is_one_write`: it does nothing before its one write, and is begun anew if that loses a race.
    """

    name: str
    verb: str
    path: str
    body: type[B]
    result: type[R]
    action: str
    summary: str
    run: Run[B, R]
    scope: Callable[[Site, B], Scope | None]
    home: Callable[[Site, B], SiteId | None]
    status: int = 200
    is_one_write: bool = False

    @property
    def is_read(self) -> bool:
        """Tell whether it changes nothing; only changes are audited."""
        return self.verb == "GET"


def anywhere(_site: Site, _body: object) -> SiteId | None:
    """Let the site that got the request answer."""
    return None


def federation_scope(_site: Site, _body: object) -> Scope | None:
    """Ask for the role over the whole federation."""
    return EVERYWHERE


def any_scope(_site: Site, _body: object) -> Scope | None:
    """Ask for the role somewhere; the answer shows what the caller may see."""
    return None


class NamesIaas(Protocol):
    """A body that says which IaaS it is about."""

    @property
    def iaas(self) -> str:
        """The IaaS, by name or id."""
        ...


def iaas_scope(site: Site, body: NamesIaas) -> Scope | None:
    """Ask for the role on the IaaS named."""
    return Scope(iaas_id=site.index.iaas_named(body.iaas).iaas_id)


def iaas_home(site: Site, body: NamesIaas) -> SiteId | None:
    """Let the site that built the IaaS answer."""
    return site.index.home("iaas", site.index.iaas_named(body.iaas).iaas_id)


class NamesNode(Protocol):
    """A body that says which node it is about."""

    @property
    def node(self) -> NodeId:
        """The node, by id."""
        ...


def node_scope(site: Site, body: NamesNode) -> Scope | None:
    """Ask for the role on the site of the node named."""
    return Scope(site_id=node_home(site, body))


def node_home(site: Site, body: NamesNode) -> SiteId:
    """Let the site of the node answer."""
    return site.index.value(Node, body.node).site_id


class OperationTable:
    """The operations by name (`doors.TABLE` is the product's)."""

    def __init__(self) -> None:
        self._by_name: dict[str, Operation[object, object]] = {}

    def add(self, operation: Operation[B, R]) -> None:
        """Enter an operation; its name must be new."""
        assert operation.name not in self._by_name, operation.name
        self._by_name[operation.name] = operation  # type: ignore[assignment]

    def get(self, name: str) -> Operation[object, object]:
        """Return an operation.

        Raises:
            NotFound: this version has none of that name; the asking site may be newer.
        """
        found = self._by_name.get(name)
        if found is None:
            raise NotFound("operation", name, hint="the asking site may run a newer version")
        return found

    def all(self) -> list[Operation[object, object]]:
        """Return all operations in order of path and verb."""
        return sorted(self._by_name.values(), key=lambda op: (op.path, op.verb))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown(Generic[R]):
    """An object as every door shows it: with its home, its age here and its revision."""

    kind: str
    id: str
    site: SiteId
    age_s: float
    revision: int
    epoch: int
    changed_s: float
    value: R
