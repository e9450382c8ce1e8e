"""An image's bytes: who may send them, and what is left when they stop coming."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import ClientConnectionError, ClientSession, web
from tests.scenario.api.conversation import Federation, NoFiles
from tests.unit.daemon.test_image_intake import needs_qemu_img

from nuage.api.consoles import Consoles
from nuage.api.events import EventRing
from nuage.api.http import Doors, build_application
from nuage.daemon.images import ControllerImages, ImageFolder
from nuage.ids import SiteId
from nuage.model.identity import Grant, Role
from nuage.model.image import Image, ImageState
from nuage.trust.permissions import TABLE as PERMISSIONS

pytestmark = needs_qemu_img
LYON = SiteId("lyon")


@pytest.fixture
async def client(federation: Federation, tmp_path: Path) -> AsyncIterator[ClientSession]:
    """Lyon's API, with a store of images behind it."""
    site = federation.sites[LYON]
    folder = ImageFolder(tmp_path / "images")
    doors = Doors(
        site=site.site, dispatcher=site.dispatcher, issuer=federation.tokens,
        images=ControllerImages(folder, site.site, site.dispatcher, cast(Any, None)),
        consoles=Consoles(site.site, site.dispatcher), events=EventRing(LYON, site.clock),
        audit=NoFiles(), metrics=lambda: b"",
    )  # fmt: skip
    runner = web.AppRunner(build_application(doors))  # as a controller runs it
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    async with ClientSession(f"http://{host}:{port}") as client:
        yield client
    await runner.cleanup()


async def announced(federation: Federation, name: str, **of: str) -> str:
    status, answer = await federation.ask("POST", "/v1/images", {"name": name, **of})
    assert status == 201, answer
    await federation.settle()
    return str(answer["result"]["id"])


async def sent(client: ClientSession, image_id: str, who: str, data: object) -> int:
    headers = {"Authorization": f"Bearer {who}"}
    response = await client.put(f"/v1/images/{image_id}/data", headers=headers, data=data)
    return response.status


async def test_bytes_are_taken_from_who_may_bring_images_in_where_it_belongs(
    federation: Federation, client: ClientSession
) -> None:
    status, answer = await federation.ask("POST", "/v1/iaas", {"name": "acme", "contract": {}})
    assert status == 201, answer
    acme = answer["result"]["id"]
    await federation.settle()
    for role in Role:
        for scope in (acme, "iaas-of-others"):
            federation.tokens.know(f"{role.value} {scope}", Grant(role, scope))
        federation.tokens.know(f"{role.value} *", Grant(role, "*"))
    tenants = (Role.IAAS_ADMIN, Role.IAAS_USER)
    for kind in ({"iaas": "acme"}, {}):
        image_id = await announced(federation, f"of {kind}", **kind)
        for role in Role:
            assert await sent(client, image_id, f"{role.value} iaas-of-others", b"x") == 403
            if role not in PERMISSIONS["image.write"] or (role in tenants and not kind):
                assert await sent(client, image_id, f"{role.value} {acme}", b"x") == 403, role
        who = f"{Role.IAAS_ADMIN.value} {acme}" if kind else "admin"
        assert await sent(client, image_id, who, b"some bytes") == 200


async def test_an_upload_that_stops_is_told_and_can_be_sent_again(
    federation: Federation, client: ClientSession, tmp_path: Path
) -> None:
    image_id = await announced(federation, "half")

    async def half() -> AsyncIterator[bytes]:
        yield b"x" * 100_000
        raise ConnectionResetError("Ctrl-C")

    with pytest.raises((ClientConnectionError, ConnectionResetError)):
        await sent(client, image_id, "admin", half())
    index = federation.sites[LYON].index
    for _ in range(1000):  # until the server has heard that the line is cut
        if index.value(Image, image_id).state is ImageState.FAILED:
            break
        await asyncio.sleep(0.01)
    image = index.value(Image, image_id)
    assert (image.state, "broke off" in image.failure) == (ImageState.FAILED, True)
    assert list((tmp_path / "images" / "incoming").iterdir()) == []
    assert await sent(client, image_id, "admin", b"all of it") == 200
    assert index.value(Image, image_id).state is ImageState.READY
