"""A VM's serial console on this terminal: keys go up as they are typed, output comes down."""

import os
import select
import sys
import termios
import time
import tty

import click

from nuage.api.client import Client
from nuage.cli.showing import row_of

LEAVE = b"\x1d"  # Ctrl-]
POLL_S = 0.1


def attach(client: Client, path: str) -> None:
    """Join this terminal and the console until Ctrl-] is typed or input ends."""
    start = row_of(client.get(path, bytes_max=2048))
    click.echo("Ctrl-] leaves the console", err=True)
    _show(start["text"])
    seen = int(str(start["total_bytes"]))
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal) if sys.stdin.isatty() else None
    try:
        if before is not None:
            tty.setraw(terminal)
        while True:
            ready, _, _ = select.select([sys.stdin], [], [], POLL_S)
            if ready:
                keys = os.read(terminal, 512) or LEAVE
                if LEAVE in keys:
                    return
                client.call("POST", path, {"text": keys.decode("utf-8", errors="ignore")})
            news = row_of(client.get(path, after_bytes=seen))
            seen = int(str(news["total_bytes"]))
            _show(news["text"])
    finally:
        if before is not None:
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)
        click.echo()


def _show(text: object) -> None:
    sys.stdout.write(str(text))
    sys.stdout.flush()


def wait_for_text(client: Client, path: str, text: str, *, after: int, timeout_s: float) -> str:
    """Return the console's output after `after` once it holds `text`; "" when it never does."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        news = str(row_of(client.get(path, after_bytes=after))["text"])
        if text in news:
            return news
        time.sleep(POLL_S)  # noqa: TID251 - a person waits
    return ""
