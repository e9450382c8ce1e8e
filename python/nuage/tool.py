"""Running the kernel's tools (`ip`, `nft`, `ss`, `wg`) to their end."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_interface
from typing import Final, NamedTuple

import msgspec

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


class Interface(NamedTuple):
    """An interface that has the address in question, and the networks in which it has it."""

    ifindex: int
    networks: tuple[str, ...]


class _Address(msgspec.Struct):
    local: str = ""
    prefixlen: int = -1


class _Shown(msgspec.Struct):
    """An interface as `ip -json` tells it; it prints empty ones for those that do not match."""

    ifindex: int = 0
    addr_info: list[_Address] = msgspec.field(default_factory=list)


def interfaces_told(told: str, address: str) -> tuple[Interface, ...]:
    """Return the interfaces of what ``ip -json address show to ADDRESS`` tells.

    Raises:
        Unavailable: that is not what this `ip` tells.
    """
    try:
        shown = msgspec.json.decode(told or "[]", type=list[_Shown])
    except msgspec.DecodeError as error:
        raise Unavailable(f"`ip` told of {address} what cannot be read: {error}") from error
    found = []
    for each in filter(lambda one: one.ifindex, shown):
        own = [a for a in each.addr_info if a.local == address and a.prefixlen >= 0]
        networks = (str(ip_interface(f"{a.local}/{a.prefixlen}").network) for a in own)
        found.append(Interface(each.ifindex, tuple(networks)))
    return tuple(found)


async def interfaces_with(address: str) -> tuple[Interface, ...]:
    """Return the interfaces of this network namespace that have `address`.

    Raises:
        Unavailable: `ip` cannot tell.
        TimedOut: it did not in time.
    """
    told = await run_tool(("ip", "-json", "address", "show", "to", address))
    return interfaces_told(told, address)
