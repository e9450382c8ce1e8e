"""A VM's serial console on this terminal: keys go up as they are typed, output comes down."""

import asyncio
import contextlib
import os
import sys
import termios
import time
import tty
from collections.abc import Iterator

import click

from nuage.api.client import Client
from nuage.api.console_client import ConsoleStream
from nuage.cli.showing import row_of
from nuage.errors import NuageError

LEAVE = b"\x1d"  # Ctrl-]
POLL_S = 0.1
REJOIN_WITHIN_S = 120.0  # a VM whose node was lost has been started elsewhere by then
REJOIN_POLL_S = 1.0
STOPPED = ("stopped", "failed", "deleted")


class _LeftError(Exception):
    """The terminal is the user's again, and why."""


def attach(client: Client, vm_path: str) -> None:
    """Join this terminal and the console until Ctrl-] is typed or the VM stops.

    A console ends where the VM leaves its node, by a move or a loss; it is joined again where the
    VM runs on. What is typed in between is dropped, and never reaches the user's own shell.
    """
    try:
        asyncio.run(_attach(client, vm_path))
    except _LeftError as left:
        click.echo(str(left), err=True)


async def _attach(client: Client, vm_path: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        console = await stack.enter_async_context(ConsoleStream(client, vm_path))
        click.echo("Ctrl-] leaves the console", err=True)
        typed = stack.enter_context(_raw_keys())
        while True:
            await _join(console, typed)
            console = await _joined_again(stack, client, vm_path, typed)


@contextlib.contextmanager
def _raw_keys() -> Iterator[asyncio.Queue[bytes]]:
    """Give what is typed, each key as it is; the terminal is as before afterwards."""
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal) if sys.stdin.isatty() else None
    typed: asyncio.Queue[bytes] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    loop.add_reader(terminal, lambda: typed.put_nowait(os.read(terminal, 512)))
    try:
        if before is not None:
            tty.setraw(terminal)
        yield typed
    finally:
        loop.remove_reader(terminal)
        if before is not None:
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)
        click.echo()


async def _join(console: ConsoleStream, typed: asyncio.Queue[bytes]) -> None:
    """Carry keys up and output down; return once the console ended."""
    ways = [asyncio.ensure_future(_show(console)), asyncio.ensure_future(_type(console, typed))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            if way.done():
                way.result()
    finally:
        for way in ways:
            way.cancel()


async def _show(console: ConsoleStream) -> None:
    while (data := await console.read()) is not None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


async def _type(console: ConsoleStream, typed: asyncio.Queue[bytes]) -> None:
    with contextlib.suppress(ConnectionError):  # the console ended
        while True:
            await console.send(await _keys(typed))


async def _keys(typed: asyncio.Queue[bytes]) -> bytes:
    keys = await typed.get()
    if not keys or LEAVE in keys:
        raise _LeftError("left the console; the VM goes on")
    return keys


async def _joined_again(
    stack: contextlib.AsyncExitStack, client: Client, vm_path: str, typed: asyncio.Queue[bytes]
) -> ConsoleStream:
    """Return the VM's console, attached where it runs now.

    Raises:
        _LeftError: it stopped, it did not come back in time, or Ctrl-] was typed.
    """
    deadline_s = time.monotonic() + REJOIN_WITHIN_S
    while time.monotonic() < deadline_s:
        await _drop_keys(typed, REJOIN_POLL_S)
        vm = row_of(await asyncio.to_thread(client.get, vm_path))
        if vm["state"] in STOPPED:
            raise _LeftError(f"the console ended: {vm['name']} is {vm['state']}")
        if vm["state"] == "running":
            with contextlib.suppress(NuageError):  # not yet
                console = await stack.enter_async_context(ConsoleStream(client, vm_path))
                click.echo(f"\r\n[{vm['name']} runs on {vm['node_id']}]\r", err=True)
                return console
    raise _LeftError("the console ended, and its VM has not come back; `nuage vm show` tells more")


async def _drop_keys(typed: asyncio.Queue[bytes], for_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(for_s):
            while True:
                await _keys(typed)


def wait_for_text(client: Client, path: str, text: str, *, after: int, timeout_s: float) -> str:
    """Return the log's output after `after` once it holds `text`; "" when it never does.

    For a VM that does not run yet: it has a log before it has a console.
    """
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        news = str(row_of(client.get(path, after_bytes=after))["text"])
        if text in news:
            return news
        time.sleep(POLL_S)  # noqa: TID251 - a person waits
    return ""
