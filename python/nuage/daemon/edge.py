"""An edge's process: the RBridge that joins its site to the others. Wiring only."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import Gauge

from nuage.channel import Handlers
from nuage.clock import Clock, SystemClock
from nuage.daemon import fabric_report
from nuage.daemon.agent import REPORT_EVERY_S, AgentChannel
from nuage.daemon.configuration import EdgeConfiguration
from nuage.daemon.fabric import Fabric
from nuage.daemon.fabric_options import fabric_options_of, lines_of
from nuage.daemon.process import Tasks, new_registry, serve_metrics
from nuage.model.fabric import FabricNews, FabricWish
from nuage.model.infrastructure import Node, NodeRole
from nuage.network.trunk_wireguard import new_private_key, public_key_of
from nuage.trust.files import require_private, write_atomically

KEY_FILE: Final = "trunk.key"
log = structlog.get_logger("edge")


def private_key(state_dir: Path) -> str:
    """Return this edge's private trunk key, made at its first start; it never leaves the node."""
    path = state_dir / KEY_FILE
    if not path.exists():
        write_atomically(path, new_private_key().encode(), secret=True)
    require_private(path)
    return path.read_text()


class EdgeProcess:
    """One edge, from configuration to running."""

    def __init__(self, configuration: EdgeConfiguration, clock: Clock | None = None) -> None:
        self._configuration = configuration
        self._clock = clock or SystemClock()
        self._tasks = Tasks()

    async def start(self) -> Callable[[], Awaitable[None]]:
        """Take up the fabric that stands, and talk to the controller."""
        configuration = self._configuration
        configuration.state_dir.mkdir(parents=True, exist_ok=True)
        key = private_key(configuration.state_dir)
        node = self._node(public_key_of(key))
        options = fabric_options_of(configuration, key)
        self._fabric = Fabric(options, self._tasks, self._clock)
        self._fabric.start()
        handlers = Handlers()
        fabric_report.register(handlers, self._fabric)
        self._channel: AgentChannel[FabricWish, FabricNews] = AgentChannel(
            replace(configuration, node=node), NodeRole.EDGE, handlers, self._tasks, self._clock
        )
        self._channel.start(
            wish_type=FabricWish,
            take_wish=self._fabric.take_wish,
            reports=self._reports,
            wishes="fabric.wishes",
        )
        if configuration.metrics_listen:
            registry = new_registry()
            Gauge("nuage_edge_trunks", "Trunks that stand", registry=registry).set_function(
                lambda: sum(standing.memory is not None for standing in self._fabric.standing)
            )
            await serve_metrics(configuration.metrics_listen, registry)
        return self.stop

    def _node(self, public_key: str) -> Node:
        configuration = self._configuration
        return replace(
            configuration.node,
            lines=lines_of(configuration),
            trunk_key=public_key,
            bare_trunks=configuration.bare_trunks,
        )

    async def _reports(self) -> AsyncIterator[FabricNews]:
        while True:
            yield fabric_report.news(self._fabric)
            await self._clock.sleep(REPORT_EVERY_S)

    async def stop(self) -> None:
        """Stop the control machine; frames go on."""
        await self._tasks.close()
        await self._channel.close()
        self._fabric.stop()
