"""A device that speaks SNMP 3 only (authPriv: HMAC-SHA-256, AES-128), on an agent's table.

pysnmp's own engine answers, so our driver meets somebody else's user-based security.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pysnmp.carrier.asyncio.dgram import udp
from pysnmp.entity import config, engine
from pysnmp.entity.rfc3413 import cmdrsp, context
from pysnmp.proto.api import v2c
from pysnmp.smi import instrum

from nuage.facility.snmp_transport import User
from nuage.lab.snmp_agent import SnmpAgent, order_of, value_in

USER = User(
    name="nuage", authentication_key="a key of eight and more", privacy_key="another such key"
)
Rows = list[tuple[Any, Any]]


class _Table(instrum.AbstractMibInstrumController):  # type: ignore[misc]
    """Answers from the agent's table, and hands orders on."""

    def __init__(self, agent: SnmpAgent) -> None:
        self._agent = agent

    def read_variables(self, *rows: tuple[Any, Any], **_told: Any) -> Rows:
        """Answer a get."""
        table = self._agent.read()
        return [(oid, value_in(table, str(oid))) for oid, _ in rows]

    def read_next_variables(self, *rows: tuple[Any, Any], **_told: Any) -> Rows:
        """Answer a get-next, of which a get-bulk is made."""
        table = self._agent.read()
        ordered = sorted(table, key=order_of)
        found: Rows = []
        for oid, _ in rows:
            after = next((o for o in ordered if order_of(o) > order_of(str(oid))), None)
            found.append(
                (oid, v2c.EndOfMibView())
                if after is None
                else (v2c.ObjectIdentifier(after), value_in(table, after))
            )
        return found

    def write_variables(self, *rows: tuple[Any, Any], **_told: Any) -> Rows:
        """Take a set."""
        for oid, value in rows:
            self._agent.set_value(str(oid), int(value))
        return list(rows)


@contextmanager
def snmp_v3_device(agent: SnmpAgent, port: int) -> Iterator[None]:
    """Serve `agent`'s table on loopback to `USER` alone."""
    device = engine.SnmpEngine()
    transport = udp.UdpTransport().open_server_mode(("127.0.0.1", port))
    config.add_transport(device, udp.DOMAIN_NAME, transport)
    config.add_v3_user(
        device, USER.name,
        config.USM_AUTH_HMAC192_SHA256, USER.authentication_key,
        config.USM_PRIV_CFB128_AES, USER.privacy_key,
    )  # fmt: skip
    config.add_vacm_user(device, 3, USER.name, "authPriv", (1, 3, 6), (1, 3, 6))
    its = context.SnmpContext(device)
    its.unregister_context_name(v2c.OctetString(""))
    its.register_context_name(v2c.OctetString(""), _Table(agent))
    for responder in (
        cmdrsp.GetCommandResponder, cmdrsp.SetCommandResponder,
        cmdrsp.NextCommandResponder, cmdrsp.BulkCommandResponder,
    ):  # fmt: skip
        responder(device, its)
    try:
        yield
    finally:
        device.close_dispatcher()
