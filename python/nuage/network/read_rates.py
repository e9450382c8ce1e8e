"""How much of a neighbour is read: a bucket for each kind of message, on each trunk.

Pure. What comes without the key is told from what has it first, and is charged to nobody.
"""

from typing import Final

from nuage.network.isis_pdu import CSNP, HELLO, LSP, MTU_ACK, MTU_PROBE, PSNP
from nuage.network.rate_limit import Rate, TokenBucket
from nuage.network.trill_frame import CHANNEL_BFD, ETHERTYPE_CHANNEL

# What may be read of a neighbour that has the key, by type: none takes another's share.
READ_RATES: Final = {
    HELLO: Rate(per_s=50, burst=200),  # by itself it says one a second
    LSP: Rate(per_s=500, burst=4000),  # twice a campus of 1,000; what is not read comes again
    CSNP: Rate(per_s=200, burst=1000),  # of 20,000 LSPs there are 240
    PSNP: Rate(per_s=200, burst=2000),
    MTU_PROBE: Rate(per_s=10, burst=50),
    MTU_ACK: Rate(per_s=10, burst=50),
    CHANNEL_BFD: Rate(per_s=100, burst=400),  # of our session, whose number nobody else knows
    ETHERTYPE_CHANNEL: Rate(per_s=2000, burst=4000),  # other messages: traces, echoes that come up
}
READ_NAMES: Final = {
    HELLO: "Hellos", LSP: "LSPs", CSNP: "lists of LSPs", PSNP: "acknowledgements of LSPs",
    MTU_PROBE: "MTU probes", MTU_ACK: "answers to MTU probes", CHANNEL_BFD: "BFD packets",
    ETHERTYPE_CHANNEL: "channel messages",
}  # fmt: skip


class ReadRates:
    """The buckets of one trunk."""

    def __init__(self, now_s: float) -> None:
        self._buckets = {kind: TokenBucket(rate, now_s) for kind, rate in READ_RATES.items()}

    def may_read(self, kind: int, now_s: float) -> bool:
        """Take one message of a kind; False: it is one too many."""
        return self._buckets[kind].take(now_s)
