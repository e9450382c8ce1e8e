"""Asks the public sources that a site is configured for, and keeps their answers in its catalogue.

One loop a source. What it keeps is dated and lies in the catalogue, so a controller that starts
without a way out goes on with what it knew. A source that fails is asked again after a pause
that doubles, or the one it asks for; an answer that is refused changes nothing. Keys are read
from their files each time: they appear in no log, no error and no record.
"""

import asyncio
import stat
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import aiohttp
import structlog

from nuage.clock import Clock
from nuage.daemon.configuration import SourceConfiguration
from nuage.daemon.process import Tasks
from nuage.energy.connectors import fetch, request_token
from nuage.energy.public_sources import KeyUse, PublicSource, make_source, merged, reaches, retry_s
from nuage.errors import CorruptData, InvalidRequest, NuageError, Unavailable
from nuage.iaas.site import Site
from nuage.model.energy import EnergySource, SourceHealth
from nuage.model.infrastructure import Datacenter

RTE_TOKEN_URL: Final = "https://digital.iservices.rte-france.com/token/oauth/"
TOKEN_MARGIN_S: Final = 60.0
KEY_BYTES_MAX: Final = 4096
OTHERS_MAY: Final = stat.S_IRWXG | stat.S_IRWXO
log = structlog.get_logger("energy")


class SourceReader:
    """Asks one source for ever."""

    def __init__(
        self,
        source: PublicSource,
        configuration: SourceConfiguration,
        clock: Clock,
        kept: EnergySource | None,
        on_answer: Callable[[EnergySource], Awaitable[None]],
    ) -> None:
        self.source = source
        self.kept = kept
        self.failure = ""
        self._configuration = configuration
        self._clock = clock
        self._on_answer = on_answer
        self._failure_count = 0
        self._token: tuple[str, float] | None = None

    @property
    def health(self) -> SourceHealth:
        """How the source does."""
        return SourceHealth(
            source=self.source.source,
            address=self.source.address,
            fetched_s=None if self.kept is None else self.kept.fetched_s,
            reaches_s=None if self.kept is None else reaches(self.kept),
            failure=self.failure,
        )

    async def run(self) -> None:
        """Ask when it is due."""
        # A site behind a proxy says so in the environment.
        async with aiohttp.ClientSession(trust_env=True) as session:
            wait_s = self.source.due_s(self.kept, self._clock.now_s()) - self._clock.now_s()
            while True:
                if wait_s > 0:
                    await self._clock.sleep(wait_s)
                wait_s = await self.turn(session)

    async def turn(self, session: aiohttp.ClientSession) -> float:
        """Ask once, keep what may be believed, and return how long to wait before the next."""
        try:
            fresh = self.source.take(await self._ask(session), self._clock.now_s())
            self.kept = merged(self.kept, fresh)
            self.failure, self._failure_count = "", 0
            await self._on_answer(self.kept)
        except NuageError as error:
            self._failure_count += 1
            told = f"refused: {error.message}" if isinstance(error, CorruptData) else error.message
            if told != self.failure:
                log.warning("source not read", source=self.source.source, error=told)
            self.failure = told
            asked_s = error.retry_after_s if isinstance(error, Unavailable) else None
            return retry_s(self._failure_count, asked_s)
        now_s = self._clock.now_s()
        return max(self.source.due_s(self.kept, now_s) - now_s, 1.0)

    async def _ask(self, session: aiohttp.ClientSession) -> bytes:
        now_s = self._clock.now_s()
        if self.source.key_use is KeyUse.NONE:
            return await fetch(session, self.source.url(now_s, ""))
        key = await asyncio.to_thread(_read_key, self._configuration.key_file, self.source.name)
        if self.source.key_use is KeyUse.QUERY:
            return await fetch(session, self.source.url(now_s, key))
        token, until_s = self._token or ("", 0.0)
        if now_s >= until_s - TOKEN_MARGIN_S:
            address = self._configuration.token_url or RTE_TOKEN_URL
            token, holds_s = await request_token(session, address, key)
            self._token = token, now_s + holds_s
        try:
            return await fetch(
                session,
                self.source.url(now_s, ""),
                headers={"Authorization": f"Bearer {token}", "Accept": "application/json"},
            )
        except NuageError:
            self._token = None  # it may have been taken back
            raise


class PublicSources:
    """A site's public sources, by name."""

    def __init__(
        self,
        configured: Mapping[str, SourceConfiguration],
        datacenter: Datacenter,
        site: Site,
        clock: Clock,
        stir: Callable[[], None],
    ) -> None:
        self._site = site
        self._stir = stir
        self._readers: dict[str, SourceReader] = {}
        for name, configuration in configured.items():
            source = make_source(
                name,
                site.site_id,
                address=configuration.url,
                latitude_deg=datacenter.latitude_deg,
                longitude_deg=datacenter.longitude_deg,
            )
            if source.key_use is not KeyUse.NONE and configuration.key_file is None:
                raise InvalidRequest(f"source {name} needs a key_file", field=f"sources.{name}")
            self._readers[name] = SourceReader(source, configuration, clock, None, self._keep)

    def start(self, tasks: Tasks) -> None:
        """Take up what the catalogue knows, and begin to ask."""
        for name, reader in self._readers.items():
            source_id = f"{self._site.site_id}-{name}"
            reader.kept = self._site.index.find_value(EnergySource, source_id)
            tasks.keep(f"source {name}", reader.run)

    def find(self, name: str) -> EnergySource | None:
        """Return what is kept of a source; None for one that never answered or is not asked."""
        reader = self._readers.get(name)
        return None if reader is None else reader.kept

    @property
    def health(self) -> tuple[SourceHealth, ...]:
        """How each does."""
        return tuple(reader.health for reader in self._readers.values())

    async def _keep(self, kept: EnergySource) -> None:
        self._stir()
        try:
            await self._site.save(kept)
        except NuageError as error:  # it is in use already; the next answer is saved again
            log.warning("answer not saved", source=kept.source, error=error.message)


def _read_key(path: Path | None, name: str) -> str:
    """Return a key; raise InvalidRequest when others may read it, too."""
    assert path is not None
    try:
        mode = path.stat().st_mode
        if mode & OTHERS_MAY:
            raise InvalidRequest(
                f"{path} is readable by others than its owner",
                field=f"sources.{name}.key_file",
                hint=f"chmod 600 {path}, and have the source issue another key",
            )
        with path.open(encoding="ascii") as file:
            key = file.read(KEY_BYTES_MAX).strip()
    except (OSError, UnicodeDecodeError) as error:
        kind = type(error).__name__  # a decoder's words would quote the key
        raise InvalidRequest(f"{path}: {kind}", field=f"sources.{name}.key_file") from None
    if not key:
        raise InvalidRequest(f"{path} is empty", field=f"sources.{name}.key_file")
    return key
