"""Every door × every role: who comes in, who does not; and the description tells of every door."""

import re
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from types import NoneType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

import msgspec
from aiohttp import web
from tests.scenario.api.conversation import Federation, NoFiles

from nuage.api.consoles import Consoles
from nuage.api.dispatch import Caller
from nuage.api.doors import DOORS
from nuage.api.events import EventRing
from nuage.api.http import Doors, build_application
from nuage.api.openapi import openapi_document
from nuage.errors import Forbidden, NuageError
from nuage.iaas.doors import TABLE
from nuage.iaas.operations import Operation
from nuage.iaas.site import Site
from nuage.ids import SiteId
from nuage.model.identity import Grant, Role
from nuage.trust.permissions import EVERYWHERE, Principal
from nuage.trust.permissions import TABLE as PERMISSIONS

LYON = SiteId("lyon")
# What is there to be named. Fields of this name are filled with it.
NAMES = {
    "iaas": "acme", "node": "lyon-vnode-1", "site": "lyon", "vm": "web", "volume": "web-boot",
    "segment": "default", "name": "fresh", "image": "guest",
}  # fmt: skip
TEXTS = {"cidr": "10.1.0.0/16", "prefix": "203.0.113.0/30", "secret": "correct horse battery"}


def sample(kind: Any, name: str = "") -> object:
    """Return a value of a field's type, made to be let through: by name, by default, or small."""
    origin = get_origin(kind)
    if kind is str or getattr(kind, "__supertype__", None) is str:
        return NAMES.get(name) or TEXTS.get(name) or "some"
    if kind in (int, float, bool):
        return kind(1)
    if kind is bytes:
        return b"some"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next(iter(kind)).value
    if origin is Union or str(origin) == "<class 'types.UnionType'>":
        return None if NoneType in get_args(kind) else sample(get_args(kind)[0], name)
    if origin in (tuple, list, frozenset, set):
        return []
    if origin is dict:
        return {}
    assert is_dataclass(kind), (kind, name)
    return body_of(cast(type, kind))


def body_of(kind: type) -> dict[str, object]:
    """Return what a request must say at least."""
    hints = get_type_hints(kind)
    needed = {f.name for f in fields(cast(Any, kind)) if f.init and _is_needed(f)}
    return {name: sample(hints[name], name) for name in sorted(needed | (set(hints) & {"iaas"}))}


def _is_needed(field: Any) -> bool:
    from dataclasses import MISSING

    return field.default is MISSING and field.default_factory is MISSING


def roles_in(role: Role, iaas_id: str, *, right: bool) -> Grant:
    """Return a grant of a role where it belongs, or on something of another's."""
    if role in (Role.IAAS_ADMIN, Role.IAAS_USER):
        return Grant(role, iaas_id if right else "iaas-of-others")
    if role is Role.OPERATOR:
        return Grant(role, "lyon" if right else "rennes")
    return Grant(role, "*")


async def lived_in(federation: Federation) -> str:
    """Build an IaaS with a VM, and a pool, for operations to name; return the IaaS's id."""
    pool = {"name": "some", "prefix": "203.0.113.0/30", "site": "lyon"}
    assert (await federation.ask("POST", "/v1/address-pools", pool))[0] == 201
    contract = {"data_countries": ["FR"], "copies": 2, "copy_sites": 2, "ack_policy": "all"}
    body = {"name": "acme", "contract": contract}
    _, answer = await federation.ask("POST", "/v1/iaas", body)
    iaas_id: str = answer["result"]["id"]
    federation.tokens.know("tenant", Grant(Role.IAAS_ADMIN, iaas_id))
    await federation.settle()
    vm = {"name": "web", "image": "guest", "site": "lyon"}
    status, answer = await federation.ask("POST", "/v1/iaas/acme/vms", vm, who="tenant")
    assert status == 202, answer
    await federation.settle()
    return iaas_id


class Spied:
    """An operation whose use case only says that it was reached."""

    def __init__(self, operation: Operation[object, object]) -> None:
        self.reached = False
        # Who answers is another question: asked here, so that nothing leaves this site.
        self.operation = replace(operation, run=self._run, home=lambda _site, _body: None)

    async def _run(self, _site: Site, _principal: Principal, _body: object) -> object:
        self.reached = True
        return None


async def comes_in(federation: Federation, operation: Operation[object, object], who: str) -> bool:
    """Tell whether `who` reaches the use case of an operation.

    An operation that names what is not there is refused for that, after nobody was let in.
    """
    body = msgspec.convert(body_of(operation.body), operation.body, strict=False)
    spied = Spied(operation)
    caller = Caller(token=who, request_id="req-1", from_address="test")
    dispatcher = federation.sites[LYON].dispatcher
    try:
        await dispatcher.perform(spied.operation, body, caller)
    except Forbidden:
        assert not spied.reached
        return False
    return spied.reached


async def test_every_operation_lets_in_the_roles_of_its_action_and_no_other(
    federation: Federation,
) -> None:
    """Valid requests, so that only the role decides; each refusal is written down."""
    federation.talk.lines.clear()
    iaas_id = await lived_in(federation)
    for role in Role:
        for right in (True, False):
            name = f"{role.value} {right}"
            federation.tokens.know(name, roles_in(role, iaas_id, right=right))
    federation.tokens.know("nobody")
    reached: dict[str, set[Role]] = {}
    unknown: list[str] = []
    for operation in TABLE.all():
        for role in Role:
            federation.tokens.notes.clear()
            try:
                is_in = await comes_in(federation, operation, f"{role.value} True")
            except NuageError as error:
                unknown.append(f"{operation.name}: {error.code}")
                break
            assert is_in == (role in PERMISSIONS[operation.action]), (operation.name, role)
            outcome = [note for note in federation.tokens.notes if note[2] == "forbidden"]
            assert bool(outcome) == (not is_in), (operation.name, role, "not written down")
            if is_in:
                reached.setdefault(operation.name, set()).add(role)
        else:
            assert not await comes_in(federation, operation, "nobody"), operation.name
    assert len(reached) + len(unknown) >= len(TABLE.all())
    assert unknown == [], "these name something that is not there: give it a name above"


async def test_a_role_elsewhere_is_no_role_here(federation: Federation) -> None:
    """An IaaS's administrator at another's, an operator at another site."""
    iaas_id = await lived_in(federation)
    del iaas_id
    for role, other in (
        (Role.IAAS_ADMIN, "iaas-of-others"), (Role.IAAS_USER, "iaas-of-others"),
        (Role.OPERATOR, "rennes"),
    ):  # fmt: skip
        federation.tokens.know(f"far {role.value}", Grant(role, other))
    site = federation.sites[LYON].site
    for operation in TABLE.all():
        body = msgspec.convert(body_of(operation.body), operation.body, strict=False)
        scope = operation.scope(site, body)
        if scope is None or scope == EVERYWHERE:
            continue  # anywhere will do: the answer shows what the caller may see
        for role in (Role.IAAS_ADMIN, Role.IAAS_USER, Role.OPERATOR):
            who = f"far {role.value}"
            assert not await comes_in(federation, operation, who), (operation.name, who)


async def test_an_operator_sees_the_nodes_and_racks_of_their_own_site(
    federation: Federation,
) -> None:
    """Operators run one site: the lists show what is theirs, and another's is refused by name."""
    for what in ("nodes", "racks"):
        kind = what.removesuffix("s")
        _, everything = await federation.ask("GET", f"/v1/{what}")
        sites = {row[kind]["site_id"] for row in everything["result"]}
        status, own = await federation.ask("GET", f"/v1/{what}", who="operator")
        assert status == 200, own
        shown = {row[kind]["site_id"] for row in own["result"]}
        assert shown == {"rennes"} & sites
        status, _ = await federation.ask("GET", f"/v1/{what}?site=lyon", who="operator")
        assert status == 403
        assert (await federation.ask("GET", f"/v1/{what}?site=rennes", who="operator"))[0] == 200


DOOR_ROLES: dict[str, set[Role]] = {
    "event.follow": set(Role),
    "audit.list": set(PERMISSIONS["audit.read"]),
    "audit.keys": set(PERMISSIONS["audit.read"]),
    "audit.file": set(PERMISSIONS["audit.read"]),
    "image.upload": set(PERMISSIONS["image.write"]),
    "vm.attach": set(PERMISSIONS["vm.console"]),
}


async def test_every_other_door_asks_for_a_token_and_its_role(federation: Federation) -> None:
    """`image.upload` checks inside, where the image is known: `test_image_uploads`."""
    iaas_id = await lived_in(federation)
    for role in Role:
        federation.tokens.know(role.value, roles_in(role, iaas_id, right=True))
    assert {door.name for door in DOORS if door.needs_token} == set(DOOR_ROLES)
    for door in DOORS:
        path = door.path.replace("{iaas}", "acme").replace("{vm}", "web")
        path = re.sub(r"{\w+}", "some", path) + ("?follow=0" if door.query.get("follow") else "")
        client = federation.clients["lyon"]
        if not door.needs_token:
            continue
        for headers in ({}, {"Authorization": "Bearer forged"}, {"Authorization": "Basic x"}):
            response = await client.request(door.verb, path, headers=headers, data=b"x")
            assert response.status == 401, door.name
            document = await response.json()
            assert document["site"] == "lyon"
            assert document["error"]["message"]
        if door.name == "image.upload":
            continue
        for role in Role:
            headers = {"Authorization": f"Bearer {role.value}"}
            response = await client.request(door.verb, path, headers=headers)
            if role in DOOR_ROLES[door.name]:
                assert response.status != 403, (door.name, role)
            else:
                assert response.status == 403, (door.name, role)


def doors_of(federation: Federation) -> web.Application:
    site = federation.sites[LYON]
    return build_application(
        Doors(
            site=site.site, dispatcher=site.dispatcher, issuer=federation.tokens,
            images=NoFiles(), consoles=Consoles(site.site, site.dispatcher),
            events=EventRing(site.site_id, site.clock), audit=NoFiles(), metrics=lambda: b"",
        )
    )  # fmt: skip


async def test_the_description_tells_of_every_door_and_of_no_other(
    federation: Federation,
) -> None:
    opened = {
        (route.method, route.resource.canonical)
        for route in doors_of(federation).router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    document = cast(Any, openapi_document())
    told = {(verb.upper(), path) for path, verbs in document["paths"].items() for verb in verbs}
    assert opened == told
    names = [d["operationId"] for verbs in document["paths"].values() for d in verbs.values()]
    assert len(names) == len(set(names))
    references = set(
        re.findall(r'"#/components/schemas/([^"]+)"', str(msgspec.json.encode(document)))
    )
    assert references <= set(document["components"]["schemas"])
