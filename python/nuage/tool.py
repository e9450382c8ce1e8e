"""Running the kernel's tools (`ip`, `nft`, `ss`, `wg`) to their end."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from nuage.errors import TimedOut, Unavailable

TOOL_S_MAX: Final = 10.0


async def run_tool(command: Sequence[str], *, text: str = "", timeout_s: float = TOOL_S_MAX) -> str:
    """Run a command to its end, with `text` as its input, and return what it printed.

    Raises:
        Unavailable: it is not installed or it failed; the message has its last words.
        TimedOut: it did not end in time and was killed.
    """
    what = " ".join(command[:4])
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=pipe if text else asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
        )
    except FileNotFoundError as error:
        raise Unavailable(f"{command[0]} is not installed ({what})") from error
    except OSError as error:
        raise Unavailable(f"{what}: {error}") from error
    try:
        async with asyncio.timeout(timeout_s):
            output, told = await process.communicate(text.encode() or None)
    except TimeoutError as error:
        with suppress(ProcessLookupError):  # it ended, and a child of its holds the pipe
            process.kill()
        await process.wait()
        raise TimedOut(what, after_s=timeout_s) from error
    except (OSError, RuntimeError) as error:  # RuntimeError: uvloop, its end is gone already
        with suppress(ProcessLookupError):
            process.kill()
        raise Unavailable(f"{what}: {error!r}") from error
    if process.returncode:
        last = (told or output).decode(errors="replace").strip()[-300:]
        raise Unavailable(f"{what} failed: {last}")
    return output.decode(errors="replace").strip()
