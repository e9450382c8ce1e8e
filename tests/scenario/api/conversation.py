"""Two sites with their HTTP doors on loopback, and a pen that writes down what is said.

The controllers are the product's (see tests/simulation/federation); nodes speak when a test says
so. What differs from run to run is masked: ids are numbered as they appear.
"""

import io
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

from aiohttp.test_utils import TestClient, TestServer
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from tests.simulation.federation.nodes import SimIonode, SimVnode, Watching, make_node
from tests.simulation.federation.whole_sites import SimSite

from nuage.api.consoles import Consoles
from nuage.api.dispatch import Caller, Dispatcher
from nuage.api.events import EventRing
from nuage.api.http import Doors, build_application
from nuage.api.openapi import openapi_document
from nuage.errors import Unauthenticated
from nuage.ids import ImageId, SiteId, UserId
from nuage.model.identity import Grant, Role
from nuage.model.image import Image, ImageState
from nuage.model.infrastructure import Datacenter, NodeRole, Operator
from nuage.model.vm import PowerWish, Vm, VmState
from nuage.simulation.virtual_time import SkewedClock
from nuage.trust.permissions import Principal
from nuage.units import MIB
from nuage.vnode.fake import FakeFabric

_ID = re.compile(r"\b(iaas|vm|vol|seg|port|user|req|img|pool)-([0-9a-f]{16})\b")
_MASKED = frozenset(
    {"revision", "age_s", "changed_s", "decided_s", "since_s", "label", "mac", "terms", "score",
     "retry_after_s", "request_id"}
)  # fmt: skip


class Tokens:
    """Tokens are names; every change and refusal is written down."""

    def __init__(self) -> None:
        self.principals: dict[str, Principal] = {}
        self.notes: list[tuple[str, str, str]] = []

    def know(self, name: str, *grants: Grant) -> None:
        self.principals[name] = Principal(UserId(f"user-{name}"), name, grants)

    def principal_of(self, token: str) -> Principal:
        try:
            return self.principals[token]
        except KeyError:
            raise Unauthenticated("the token is not one of this federation") from None

    def note(self, *, who: str, what: str, outcome: str, **_more: str) -> None:
        self.notes.append((who, what, outcome))

    async def issue(self, name: str, secret: str) -> str:
        if secret != "correct horse":
            raise Unauthenticated("no such user, or a wrong secret")
        return name


class NoFiles:
    """Doors that these scenarios do not open."""

    async def receive(self, _caller: Caller, image_id: str, chunks: AsyncIterator[bytes]) -> object:
        return {"image": image_id, "bytes": sum([len(chunk) async for chunk in chunks])}

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


@cache
def _described() -> tuple[dict[str, Any], list[tuple[re.Pattern[str], dict[str, Any]]]]:
    document = cast(dict[str, Any], openapi_document())
    paths = [
        (re.compile(re.sub(r"{\w+}", "[^/]+", path)), verbs)
        for path, verbs in sorted(document["paths"].items(), key=lambda item: "{" in item[0])
    ]
    return document["components"], paths


@cache
def _validator(path: re.Pattern[str], verb: str, status: int) -> Any:
    components, paths = _described()
    responses = dict(paths)[path][verb.lower()]["responses"]
    assert str(status) in responses, f"{verb} {path.pattern} does not tell of {status}"
    schema = responses[str(status)]["content"]["application/json"]["schema"]
    return Draft202012Validator({**schema, "components": components})


def require_described(verb: str, path: str, status: int, document: object) -> None:
    """Check an answer against the OpenAPI description: its status, and every field of it."""
    plain = path.partition("?")[0]
    for pattern, verbs in _described()[1]:
        if pattern.fullmatch(plain) and verb.lower() in verbs and status != 413:
            _validator(pattern, verb, status).validate(document)
            return
    assert status in (404, 405, 413), f"{verb} {path} is not described"


@dataclass
class Talk:
    """What was said, masked."""

    lines: list[str] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)

    def mask(self, text: str) -> str:
        def numbered(match: re.Match[str]) -> str:
            kind, whole = match[1], match[0]
            same_kind = [k for k in self.known.values() if k.startswith(f"{kind}-#")]
            return self.known.setdefault(whole, f"{kind}-#{len(same_kind) + 1}")

        return _ID.sub(numbered, text)

    def said(self, document: object) -> str:
        def masked(value: object, key: str = "") -> object:
            if key in _MASKED:
                return "…"
            if isinstance(value, dict):
                return {k: masked(v, k) for k, v in value.items()}
            if isinstance(value, list):
                return [masked(item) for item in value]
            return value

        return self.mask(json.dumps(masked(document), indent=1, ensure_ascii=False))


class Federation(Watching):
    """Lyon and Rennes, in France, and Zürich, which is not."""

    def __init__(self) -> None:
        super().__init__(1)
        self.tokens = Tokens()
        self.talk = Talk()
        self.clients: dict[str, TestClient[Any, Any]] = {}

    async def open(self) -> None:
        self.wires.delay_s = lambda: 0.0  # type: ignore[method-assign]
        for number, (name, country) in enumerate(
            (("lyon", "FR"), ("rennes", "FR"), ("zurich", "CH"))
        ):
            self.sites[SiteId(name)] = self._site(name, country, number)
        for site in self.sites.values():
            site.boot()
            site.dispatcher = Dispatcher(site.site, self.tokens, self.tokens)
            self.clients[site.site_id] = await self._door(site)
        image = Image(
            image_id=ImageId("img-0000000000000001"), name="guest", iaas_id=None, sha256="aa",
            size_bytes=16 * MIB, state=ImageState.READY,
        )  # fmt: skip
        await self.sites[SiteId("lyon")].site.save(image)
        self.tokens.know("admin", Grant(Role.NUAGE_ADMIN, "*"))
        self.tokens.know("auditor", Grant(Role.AUDITOR, "*"))
        self.tokens.know("operator", Grant(Role.OPERATOR, "rennes"))
        await self.settle()

    def _site(self, name: str, country: str, number: int) -> SimSite:
        datacenter = Datacenter(
            site_id=SiteId(name), place=name.title(), country=country,
            operator=Operator(name.title(), country), tier=3, power_capacity_watts=18_000.0,
            number=number, latitude_deg=45.0 + number,
        )  # fmt: skip
        site = SimSite(self, datacenter, SkewedClock())
        node = make_node(site.site_id, NodeRole.VNODE, 1)
        site.vnodes.append(SimVnode(self, site, node, site.clock, FakeFabric()))
        node = make_node(site.site_id, NodeRole.IONODE, 1)
        site.ionodes.append(SimIonode(self, site, node, site.clock))
        return site

    async def _door(self, site: SimSite) -> TestClient[Any, Any]:
        consoles = Consoles(site.site, site.dispatcher)
        consoles.register(site.handlers)
        doors = Doors(
            site=site.site, dispatcher=site.dispatcher, issuer=self.tokens, images=NoFiles(),
            consoles=consoles, events=EventRing(site.site_id, site.clock), audit=NoFiles(),
            metrics=lambda: b"",
        )  # fmt: skip
        client = TestClient(TestServer(build_application(doors)))
        await client.start_server()
        return client

    async def settle(self) -> None:
        """Let nodes speak and feeds flow until nothing changes any more."""
        import asyncio

        before: list[int] = []
        for _ in range(200):
            for site in self.sites.values():
                for vnode in site.vnodes:
                    await vnode.step()
                    await vnode._talk()
                for ionode in site.ionodes:
                    await ionode._talk()
            await asyncio.sleep(0.03)
            now = [site.catalogue.revision for site in self.sites.values()]
            heard = all(
                a.replicas.cursor(b.site_id).revision == b.catalogue.revision
                for a in self.sites.values()
                for b in self.sites.values()
                if a is not b and a.machine.is_up and b.machine.is_up
            )
            waiting = any(
                vm.state is VmState.STARTING
                or vm.wish is PowerWish.DELETED
                or (vm.wish is PowerWish.STOPPED and vm.state is not VmState.STOPPED)
                for site in self.sites.values()
                for vm in site.index.values(Vm)
            )
            if now == before and heard and not waiting:
                return
            before = now
        raise AssertionError("the federation does not come to rest")

    async def close(self) -> None:
        for client in self.clients.values():
            await client.close()
        for site in self.sites.values():
            site.crash()

    async def ask(
        self, verb: str, path: str, body: object = None, *, who: str = "admin", at: str = "lyon",
        raw: bytes | None = None,
    ) -> tuple[int, Any]:  # fmt: skip
        """Send one request, write down both sides, return status and answer."""
        data = raw if raw is not None else (None if body is None else json.dumps(body).encode())
        headers = {"Authorization": f"Bearer {who}"} if who else {}
        sent = None if data is None else io.BytesIO(data)
        response = await self.clients[at].request(verb, path, data=sent, headers=headers)
        document = json.loads(await response.read())
        require_described(verb, path, response.status, document)
        shown = self.talk.mask(path)
        self.talk.lines.append(f"> {verb} {shown}    ({who or 'nobody'}, at {at})")
        if body is not None:
            self.talk.lines.append("> " + self.talk.mask(json.dumps(body)))
        self.talk.lines.append(f"< {response.status}")
        self.talk.lines += [f"< {line}" for line in self.talk.said(document).splitlines()]
        self.talk.lines.append("")
        return response.status, document

    def revisions(self) -> list[int]:
        return [site.catalogue.revision for site in self.sites.values()]


def compare(path: Path, lines: list[str], *, rewrite: bool) -> None:
    """Compare what was said with the transcript, or write the transcript anew."""
    said = "\n".join(lines) + "\n"
    if rewrite:
        path.write_text(said)
        return
    assert path.exists(), f"no transcript {path.name}: run pytest --rewrite and read the diff"
    assert said == path.read_text(), f"{path.name} differs: pytest --rewrite, then read the diff"
