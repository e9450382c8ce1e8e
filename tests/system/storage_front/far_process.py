"""Run on a V-node: initiators whose portal is at another site, and what becomes of them.

Usage: far_process.py RELAY FOLDER TRUST PORTAL NODE WAY ACT…, where an act is one of

- ``COMMAND``: have qemu-io run it on the volume, in a process of its own.
- ``!FILE``: make a file while an initiator is connected, and have that go on after it.
- ``!``: end the relay while an initiator is connected, and have that go on after it.
- ``~``: have an initiator go on when it has connected.
- ``>FILE PORTAL NODE``: as with ``!FILE``, and a second after lead it to another portal.

Prints a line for each.
"""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

from nuage.ids import VolumeId
from nuage.vnode.hypervisor import IscsiDisk
from nuage.vnode.relay import Relay, RelayOptions
from nuage.vnode.rerouting import Rerouting

TIMEOUT_S = 30.0
MOVED_S = 1.0  # after which a controller has opened a head elsewhere


async def main() -> None:
    """Do all acts with one relay, and end it."""
    binary, folder, trust, portal, node, iqn, *acts = sys.argv[1:]
    files = Path(trust)
    relay = Relay(
        RelayOptions(
            binary=binary, folder=Path(folder), key=files / "key.pem", chain=files / "cert.pem",
            root=files / "ca.pem", lists=files / "crl.pem", own_user=True,
        )
    )  # fmt: skip
    kernel = Rerouting(relay)
    disk = IscsiDisk(volume_id=VolumeId("v"), portal=portal, iqn=iqn, far_node=node)
    kernel.learn([disk])
    url = f"iscsi://{portal}/{iqn}/0"
    for act in acts:
        if act.startswith(("!", "~", ">")):
            said = await through(kernel, relay, url, act)
            await kernel.hold(frozenset())
        else:
            async with kernel.refusable(frozenset((portal,))):
                said = await qemu_io(url, act)
        sys.stdout.write(f"{act}: {said}\n")
    await relay.close()


async def qemu_io(url: str, act: str) -> str:
    """Return what qemu-io says, in one line."""
    process = await asyncio.create_subprocess_exec(
        "qemu-io", "-f", "raw", "-t", "none", "-c", act, "-c", "flush", url,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(TIMEOUT_S):
        said, _ = await process.communicate()
    return f"{process.returncode} {said.decode()!r}"


async def through(kernel: Rerouting, relay: Relay, url: str, act: str) -> str:
    """Have an initiator connect, do something to its way, and let it go on."""
    portal = url.split("/")[2]
    words = (
        "write -P 17 0 64k", "flush", "sleep 500", "write -P 18 64k 64k", "read -P 17 0 64k",
        "read -P 18 64k 64k",
    )  # fmt: skip
    async with kernel.refusable(frozenset((portal,))), asyncio.timeout(TIMEOUT_S):
        process = await asyncio.create_subprocess_exec(
            "stdbuf", "-oL", "qemu-io", "-f", "raw", "-t", "none",
            *(f"-c{each}" for each in words), url,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdout is not None
        await process.stdout.readuntil(b"65536/65536")
    async with asyncio.timeout(TIMEOUT_S):
        if act == "!":
            os.kill(relay.pid, signal.SIGKILL)
        elif act.startswith(("!", ">")):
            Path(act[1:].split(maxsplit=1)[0]).touch()
        begun_s = asyncio.get_running_loop().time()
        ended = asyncio.ensure_future(process.wait())
        async with contextlib.AsyncExitStack() as led:
            while not ended.done():  # as the agent looks, again and again
                await asyncio.wait({ended}, timeout=0.3)
                await kernel.hold(frozenset((portal,)))
                if act.startswith(">") and asyncio.get_running_loop().time() > begun_s + MOVED_S:
                    _, new, *node = act.split()
                    moved = IscsiDisk(volume_id=VolumeId("v"), portal=new, iqn="", far_node="".join(node))  # fmt: skip # noqa: E501
                    kernel.learn([moved])
                    await led.enter_async_context(kernel.led(portal, new, is_again=False))
                    act = ""
        said = await process.stdout.read()
    took_s = asyncio.get_running_loop().time() - begun_s
    return f"{process.returncode} after {took_s:.1f} s {said.decode()!r}"


if __name__ == "__main__":
    asyncio.run(main())
