"""How far bytes are, on a terminal."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn


@contextlib.contextmanager
def bytes_shown(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield what is told how many bytes of `total` are done; it says nothing but to a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(
        *columns, TransferSpeedColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task(text, total=total)
        yield lambda done: progress.update(task, completed=done)
