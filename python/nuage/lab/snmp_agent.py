"""A small SNMP 2c agent: answers get, get-bulk and set from a table made anew for each question.

For the lab's PDUs and the drivers' tests. What is not SNMP, or knows another community, is not
answered, as a real device does.
"""

import asyncio
from collections.abc import Callable
from typing import Final, TypeAlias, cast

from pyasn1.codec.ber import decoder, encoder  # type: ignore[import-untyped]
from pyasn1.error import PyAsn1Error  # type: ignore[import-untyped]
from pysnmp.proto.api import v2c

# Values by object: numbers, strings, or an object's own number.
Table: TypeAlias = dict[str, int | str | tuple[int, ...]]

DATAGRAM_BYTES_MAX: Final = 4096
ROWS_MAX: Final = 100  # an answer stays within one datagram


class SnmpAgent(asyncio.DatagramProtocol):
    """Answers for one device. `is_silent` makes it deaf, `set_value` hears of orders."""

    def __init__(
        self,
        community: str,
        read: Callable[[], Table],
        set_value: Callable[[str, int], None],
        is_silent: Callable[[], bool] = lambda: False,
    ) -> None:
        self._community = community.encode()
        self.read = read
        self.set_value = set_value
        self._is_silent = is_silent
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer one question."""
        if self._is_silent() or len(data) > DATAGRAM_BYTES_MAX:
            return
        try:
            message, _ = decoder.decode(data, asn1Spec=v2c.Message())
            if bytes(v2c.apiMessage.get_community(message)) != self._community:
                return
            answer = self._answer(message)
        except PyAsn1Error:
            return
        assert self._transport is not None
        self._transport.sendto(encoder.encode(answer), addr)

    def _answer(self, message: object) -> object:
        request = v2c.apiMessage.get_pdu(message)
        answer = v2c.apiMessage.get_response(message)
        table = self.read()
        if request.isSameTypeWith(v2c.GetBulkRequestPDU()):
            rows = _bulk(table, request)
        else:
            rows = v2c.apiPDU.get_varbinds(request)
            if request.isSameTypeWith(v2c.SetRequestPDU()):
                for oid, value in rows:
                    self.set_value(str(oid), int(value))
            else:
                rows = [(oid, value_in(table, str(oid))) for oid, _ in rows]
        v2c.apiPDU.set_varbinds(v2c.apiMessage.get_pdu(answer), rows)
        return answer


def order_of(oid: str) -> tuple[int, ...]:
    """Return what objects are ordered by."""
    return tuple(int(part) for part in oid.split("."))


def _bulk(table: Table, request: object) -> list[tuple[object, object]]:
    """Return the rows after each object asked for."""
    rows: list[tuple[object, object]] = []
    ordered = sorted(table, key=order_of)
    repetitions = min(int(v2c.apiBulkPDU.get_max_repetitions(request)), ROWS_MAX)
    for oid, _ in v2c.apiBulkPDU.get_varbinds(request):
        after = [key for key in ordered if order_of(key) > order_of(str(oid))]
        chosen = after[:repetitions]
        rows += [(v2c.ObjectIdentifier(key), value_in(table, key)) for key in chosen]
        if not chosen:
            rows.append((oid, v2c.EndOfMibView()))
    return rows


def value_in(table: Table, oid: str) -> object:
    """Return an object's value as SNMP's type."""
    value = table.get(oid)
    match value:
        case None:
            return v2c.NoSuchInstance()
        case int():
            return v2c.Integer(value)
        case str():
            return v2c.OctetString(value.encode())
        case _:
            return v2c.ObjectIdentifier(value)
