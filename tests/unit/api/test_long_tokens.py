"""The API takes every token that a site may issue, however many roles are in it."""

from pathlib import Path

from aiohttp import web
from tests.unit.api.unix_door import unix_door

from nuage.api.client import Client
from nuage.trust.tokens import TOKEN_CHARS_MAX


async def heard_chars(request: web.Request) -> web.Response:
    return web.json_response({"result": len(request.headers["Authorization"])})


def test_the_longest_token_fits_into_a_request(tmp_path: Path) -> None:
    application = web.Application()
    application.router.add_get("/", heard_chars)
    with unix_door(application, tmp_path) as door:
        heard = Client(door, token="x" * TOKEN_CHARS_MAX).get("/")
    assert heard == len("Bearer ") + TOKEN_CHARS_MAX
