"""A small SNMP agent on loopback that answers from a table: for the drivers' tests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from pyasn1.codec.ber import decoder, encoder  # type: ignore[import-untyped]
from pysnmp.proto import api
from pysnmp.proto.api import v2c

Table = dict[str, int | str | tuple[int, ...]]


def _key(oid: str) -> tuple[int, ...]:
    return tuple(int(part) for part in oid.split("."))


class _Agent(asyncio.DatagramProtocol):
    def __init__(self, table: Table, community: str) -> None:
        self.table = table
        self.community = community
        self.sets: list[tuple[str, int]] = []
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        message, _ = decoder.decode(data, asn1Spec=v2c.Message())
        if bytes(v2c.apiMessage.get_community(message)) != self.community.encode():
            return
        request = v2c.apiMessage.get_pdu(message)
        answer = v2c.apiMessage.get_response(message)
        pdu = v2c.apiMessage.get_pdu(answer)
        if request.isSameTypeWith(v2c.GetBulkRequestPDU()):
            rows = self._bulk(request)
        elif request.isSameTypeWith(v2c.SetRequestPDU()):
            rows = v2c.apiPDU.get_varbinds(request)
            self.sets += [(str(oid), int(value)) for oid, value in rows]
        else:
            rows = [(oid, self._value(str(oid))) for oid, _ in v2c.apiPDU.get_varbinds(request)]
        v2c.apiPDU.set_varbinds(pdu, rows)
        assert self.transport is not None
        self.transport.sendto(encoder.encode(answer), addr)

    def _bulk(self, request: object) -> list[tuple[object, object]]:
        rows: list[tuple[object, object]] = []
        ordered = sorted(self.table, key=_key)
        for oid, _ in v2c.apiBulkPDU.get_varbinds(request):
            after = [key for key in ordered if _key(key) > _key(str(oid))]
            chosen = after[: int(v2c.apiBulkPDU.get_max_repetitions(request))]
            rows += [(v2c.ObjectIdentifier(key), self._value(key)) for key in chosen]
            if not chosen:
                rows.append((oid, v2c.EndOfMibView()))
        return rows

    def _value(self, oid: str) -> object:
        value = self.table.get(oid)
        match value:
            case None:
                return v2c.NoSuchInstance()
            case int():
                return v2c.Integer(value)
            case str():
                return v2c.OctetString(value.encode())
            case _:
                return v2c.ObjectIdentifier(value)


@asynccontextmanager
async def snmp_agent(table: Table, community: str = "secret") -> AsyncIterator[tuple[int, _Agent]]:
    """Serve `table`; yields (port, agent)."""
    assert api.SNMP_VERSION_2C in api.PROTOCOL_MODULES
    loop = asyncio.get_running_loop()
    transport, agent = await loop.create_datagram_endpoint(
        lambda: _Agent(table, community), local_addr=("127.0.0.1", 0)
    )
    try:
        yield transport.get_extra_info("sockname")[1], agent
    finally:
        transport.close()
