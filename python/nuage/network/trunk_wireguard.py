"""Setting trunks up: probes which driver this machine has, and runs what `trunk` worked out.

Acts. Every command has a time limit; a failure names the command and what it said. Interfaces
are made in the network namespace of the calling process.
"""

import asyncio
import os
import secrets
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from nuage.clock import Clock
from nuage.errors import TimedOut, Unavailable
from nuage.network.trunk import (
    TrunkDriver,
    TrunkPlan,
    TrunkWish,
    link_commands,
    plan_trunk,
    wireguard_config,
)
from nuage.network.tunnel_sockets import prepare
from nuage.tool import TOOL_S_MAX, run_tool

READY_S_MAX: Final = 5.0
READY_POLL_S: Final = 0.05
NICENESS: Final = -10
PROBE_NAME_BYTES: Final = 3


@dataclass(frozen=True, slots=True)
class DriverProbe:
    """Whether a driver works here; if not, why."""

    driver: TrunkDriver
    usable: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TrunkUp:
    """A trunk that is set up. A wireguard-go outlives us: it ends when its interface goes."""

    plan: TrunkPlan


def new_private_key() -> str:
    """Return a fresh WireGuard private key, base64."""
    return b64encode(secrets.token_bytes(32)).decode()


def public_key_of(private_key: str) -> str:
    """Return the public half of a WireGuard key, base64."""
    key = X25519PrivateKey.from_private_bytes(b64decode(private_key))
    return b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


@contextmanager
def secret_file(text: str) -> Iterator[str]:
    """Give `text` a path that only this user can read and that never touches a disk."""
    descriptor = os.memfd_create("secret", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)


async def probe(driver: TrunkDriver) -> DriverProbe:
    """Try a driver for real: make an interface with it and take it away again."""
    if driver is TrunkDriver.NONE:
        return DriverProbe(driver, usable=True)
    name = f"nwp{secrets.token_hex(PROBE_NAME_BYTES)}"
    try:
        if driver is TrunkDriver.WIREGUARD_KERNEL:
            await run_tool(("ip", "link", "add", name, "type", "wireguard"))
            await run_tool(("ip", "link", "del", name))
        else:
            await run_tool(("wireguard-go", "--version"))
            await run_tool(("wg", "--version"))
    except (Unavailable, TimedOut) as error:
        return DriverProbe(driver, usable=False, reason=error.message)
    return DriverProbe(driver, usable=True)


async def set_up(wish: TrunkWish, private_key: str, clock: Clock) -> TrunkUp:
    """Set a trunk up with the first of its drivers that works here.

    Raises:
        Unavailable: none does; the message has each one's reason. Nothing is left behind.
        InvalidRequest: the path is too narrow.
    """
    refusals = []
    for driver in wish.drivers:
        found = await probe(driver)
        if found.usable:
            plan = plan_trunk(wish, driver)
            try:
                return await _set_up(plan, private_key, clock)
            except (Unavailable, TimedOut):
                await tear_down(plan.port, plan.tunnel)
                raise
        refusals.append(f"{driver.value}: {found.reason}")
    raise Unavailable(f"no driver for trunk {wish.number}: {'; '.join(refusals)}")


async def _set_up(plan: TrunkPlan, private_key: str, clock: Clock) -> TrunkUp:
    if plan.driver is TrunkDriver.WIREGUARD_KERNEL:
        await run_tool(("ip", "link", "add", plan.tunnel, "type", "wireguard"))
    elif plan.driver is TrunkDriver.WIREGUARD_GO:
        await _start_wireguard_go(plan.tunnel)
        await _wait_for(plan.tunnel, clock)
    if plan.tunnel:
        with secret_file(wireguard_config(plan, private_key)) as path:
            await run_tool(("wg", "setconf", plan.tunnel, path))
    for command in link_commands(plan):
        await run_tool(command)
    if plan.driver is TrunkDriver.WIREGUARD_GO:  # its sockets are there since its link is up
        with suppress(OSError):  # the trunk stands without it, and loses more
            prepare(plan.tunnel)
    return TrunkUp(plan)


async def _start_wireguard_go(tunnel: str) -> None:
    """Start wireguard-go, which goes to the background by itself; no pipe of ours stays open."""
    process = await asyncio.create_subprocess_exec(
        # It carries what neighbours live by: before what computes.
        "nice", "-n", str(NICENESS), "wireguard-go", tunnel,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(TOOL_S_MAX):
            status = await process.wait()
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise TimedOut(f"wireguard-go {tunnel}", after_s=TOOL_S_MAX) from error
    if status:
        raise Unavailable(f"wireguard-go {tunnel} ended with status {status}")


async def _wait_for(tunnel: str, clock: Clock) -> None:
    """Wait until wireguard-go has made the interface and answers `wg`."""
    deadline_s = clock.monotonic_s() + READY_S_MAX
    while True:
        try:
            await run_tool(("ip", "link", "show", tunnel))
            await run_tool(("wg", "show", tunnel))
        except Unavailable:
            if clock.monotonic_s() >= deadline_s:
                raise
            await clock.sleep(READY_POLL_S)
        else:
            return


async def tear_down(*interfaces: str) -> None:
    """Take a trunk's interfaces away; "" stands for one that it has not."""
    for name in filter(None, interfaces):
        with suppress(Unavailable, TimedOut):  # it is not there: what we want
            await run_tool(("ip", "link", "del", name))
