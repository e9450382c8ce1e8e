"""The one way daemons talk: controller to controller, agent to controller.

One persistent connection under mutual TLS; both sides may call, notify and subscribe. What
flows in and out are values of `msgspec`-encodable types; a failure at the other side is
raised here as the same error. The wire is described in docs/protocols/channel.md.

This package does not decide whom to trust (`nuage.trust` makes the TLS contexts and the
admission hook) nor what is said (each daemon registers its own handlers).
"""

from nuage.channel.client import ChannelClient, ChannelState, accepts, parse_address
from nuage.channel.handlers import Handlers
from nuage.channel.identity import Admission, Expected, Identity, admit_all, parse_identity
from nuage.channel.memory import MemoryPair, memory_pair
from nuage.channel.peer import Peer, current_request_id
from nuage.channel.server import ChannelServer
from nuage.channel.subscription import Subscription

__all__ = [
    "Admission",
    "ChannelClient",
    "ChannelServer",
    "ChannelState",
    "Expected",
    "Handlers",
    "Identity",
    "MemoryPair",
    "Peer",
    "Subscription",
    "accepts",
    "admit_all",
    "current_request_id",
    "memory_pair",
    "parse_address",
    "parse_identity",
]
