"""A VM's serial console on this terminal: keys go up as they are typed, output comes down."""

import asyncio
import os
import sys
import termios
import time
import tty

import click

from nuage.api.client import Client
from nuage.api.console_client import ConsoleStream
from nuage.cli.showing import row_of

LEAVE = b"\x1d"  # Ctrl-]
POLL_S = 0.1


def attach(client: Client, vm_path: str) -> None:
    """Join this terminal and the console until Ctrl-] is typed or either ends."""
    asyncio.run(_attach(client, vm_path))


async def _attach(client: Client, vm_path: str) -> None:
    async with ConsoleStream(client, vm_path) as console:
        click.echo("Ctrl-] leaves the console", err=True)
        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal) if sys.stdin.isatty() else None
        try:
            if before is not None:
                tty.setraw(terminal)
            ways = {asyncio.ensure_future(_show(console)), asyncio.ensure_future(_type(console))}
            done, left = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in left:
                way.cancel()
        finally:
            if before is not None:
                termios.tcsetattr(terminal, termios.TCSADRAIN, before)
            click.echo()
        for way in done:
            click.echo(way.result(), err=True)


async def _show(console: ConsoleStream) -> str:
    while True:
        data = await console.read()
        if data is None:
            return "the console ended: the VM stopped, or runs elsewhere now"
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


async def _type(console: ConsoleStream) -> str:
    loop = asyncio.get_running_loop()
    typed: asyncio.Queue[bytes] = asyncio.Queue()
    terminal = sys.stdin.fileno()
    loop.add_reader(terminal, lambda: typed.put_nowait(os.read(terminal, 512)))
    try:
        while True:
            keys = await typed.get()
            if not keys or LEAVE in keys:
                return "left the console; the VM goes on"
            await console.send(keys)
    finally:
        loop.remove_reader(terminal)


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
