"""An aiohttp application behind a Unix socket, in a thread: a door for a blocking client."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web

from nuage.api.http import runner_of


@contextmanager
def unix_door(app: web.Application, folder: Path) -> Iterator[str]:
    """Serve `app` at a socket in `folder`; give its address as a `Client` takes it."""
    loop = asyncio.new_event_loop()
    runner = runner_of(app)
    path = str(folder / "api.sock")

    async def open_door() -> None:
        await runner.setup()
        await web.UnixSite(runner, path).start()

    loop.run_until_complete(open_door())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"unix:{path}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
