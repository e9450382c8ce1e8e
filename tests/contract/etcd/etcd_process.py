"""Start etcd members on loopback for a test; the data lies in the test's own folder."""

import asyncio
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from nuage.errors import NuageError
from nuage.etcd.client import EtcdClient

START_TRIES = 200
START_POLL_S = 0.05
PATIENCE_S = 60.0  # of one request: the machine may stand still for seconds
MEMORY = Path("/dev/shm")  # a killed member needs the page cache kept, not the disk


def require_etcd() -> str:
    """Return etcd's path, or skip the test: the binary is not installed."""
    binary = shutil.which("etcd")
    if binary is None:
        pytest.skip("missing: etcd (Debian: etcd-server)")
    return binary


def free_port() -> int:
    """Return a TCP port of loopback that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def patient_client(*endpoints: str) -> EtcdClient:
    """Return a client that waits longer than any machine stands still."""
    return EtcdClient(endpoints, timeout_s=PATIENCE_S)


@dataclass
class EtcdMember:
    """One running member."""

    name: str
    folder: Path
    client_url: str
    peer_url: str
    arguments: Sequence[str]
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            require_etcd(), *self.arguments,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip

    async def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


async def wait_until_up(endpoints: Sequence[str]) -> None:
    """Wait until a linearizable read succeeds at every endpoint."""
    for endpoint in endpoints:
        client = patient_client(endpoint)
        try:
            for tried in range(START_TRIES):
                try:
                    await client.range(b"up")
                    break
                except NuageError:
                    if tried == START_TRIES - 1:
                        raise
                    await asyncio.sleep(START_POLL_S)
        finally:
            await client.close()


@asynccontextmanager
async def etcd_cluster(folder: Path, *, size: int = 1) -> AsyncIterator[list[EtcdMember]]:
    """Run `size` members for the length of the block, their data in memory where it can be."""
    require_etcd()
    if MEMORY.is_dir():
        with tempfile.TemporaryDirectory(prefix="nuage-etcd-", dir=MEMORY) as kept:
            async with _members(Path(kept), size) as members:
                yield members
    else:
        async with _members(folder, size) as members:
            yield members


@asynccontextmanager
async def _members(folder: Path, size: int) -> AsyncIterator[list[EtcdMember]]:
    names = [f"m{index}" for index in range(size)]
    urls = {n: [f"http://127.0.0.1:{free_port()}" for _ in range(2)] for n in names}
    initial = ",".join(f"{name}={urls[name][1]}" for name in names)
    async with AsyncExitStack() as stack:
        members = []
        for name in names:
            client_url, peer_url = urls[name]
            arguments = [
                "--name", name, "--data-dir", str(folder / name), "--log-level", "error",
                "--listen-client-urls", client_url, "--advertise-client-urls", client_url,
                "--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url,
                "--initial-cluster", initial, "--heartbeat-interval", "100",
                "--election-timeout", "1000",
            ]  # fmt: skip
            member = EtcdMember(name, folder / name, client_url, peer_url, arguments)
            await member.start()
            stack.push_async_callback(member.kill)
            members.append(member)
        await wait_until_up([member.client_url for member in members])
        yield members
