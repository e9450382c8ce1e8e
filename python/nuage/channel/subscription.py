"""The receiving end of a stream: items that the peer sends as fast as they are taken."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec

from nuage.errors import NuageError

T = TypeVar("T")


@dataclass(slots=True)
class Inbox:
    """Items of one subscription that nobody has taken yet: never more than its credit.

    The peer's connection fills it; a `Subscription` empties it.
    """

    items: deque[msgspec.Raw] = field(default_factory=deque)
    error: NuageError | None = None
    ended: bool = False
    waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Let whoever waits for an item look again."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class Subscription(Generic[T]):
    """The items of a peer's stream. Cancelled by `aclose`, by the context, or when dropped.

    A slow consumer slows the sender: at most the credit given at the start waits here.
    """

    def __init__(
        self,
        inbox: Inbox,
        *,
        read: Callable[[msgspec.Raw], T],
        grant: Callable[[int], None],
        cancel: Callable[[], None],
        credit: int,
    ) -> None:
        self._inbox = inbox
        self._read = read
        self._grant = grant
        self._cancel = cancel
        self._taken_count = 0
        self._grant_after = max(1, credit // 2)  # half a window: the sender never runs dry

    def __aiter__(self) -> "Subscription[T]":
        return self

    async def __anext__(self) -> T:
        """Return the next item.

        Raises:
            NuageError: what ended the stream at the other side.
            Unavailable: the connection was lost; subscribe again when there is a new one.
        """
        inbox = self._inbox
        while not inbox.items:
            if inbox.error is not None:
                raise inbox.error
            if inbox.ended:
                raise StopAsyncIteration
            inbox.waiter = asyncio.get_running_loop().create_future()
            await inbox.waiter
        body = inbox.items.popleft()
        self._taken_count += 1
        if self._taken_count >= self._grant_after:
            self._grant(self._taken_count)
            self._taken_count = 0
        return self._read(body)

    async def aclose(self) -> None:
        """Cancel the stream; items not yet taken are dropped."""
        self._close()

    async def __aenter__(self) -> "Subscription[T]":
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._close()

    def __del__(self) -> None:
        self._close()

    def _close(self) -> None:
        self._inbox.ended = True
        self._inbox.items.clear()
        self._inbox.wake()
        self._cancel()
