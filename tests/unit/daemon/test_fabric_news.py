"""What happens in the fabric, as people are told: sentences, and which of them are events."""

from typing import Any, cast

import pytest

from nuage.daemon.fabric_desk import FabricDesk
from nuage.daemon.fabric_news import FabricNewsBook
from nuage.ids import NodeId
from nuage.model.fabric import FabricNews as NodeNews
from nuage.network.fabric_event import FabricLog, FabricNews
from nuage.network.forwarding import PortNumber
from nuage.network.lisp_event import LispLog, LispNews

TRUNK = "trunk ntr5 to lyon-edge1"


def said(book: FabricNewsBook, news: FabricNews, detail: str = "why") -> tuple[str, ...]:
    book.fabric(FabricLog(news, PortNumber(5), detail), TRUNK)
    return book.take()


def test_a_wrong_key_is_an_event_that_names_the_trunk_and_says_what_is_done() -> None:
    book = FabricNewsBook(is_edge=False)
    (line,) = said(book, FabricNews.AUTHENTICATION_FAILED, "auth_digest")
    assert line == (
        f"{TRUNK} brings control messages without the fabric's key: not read (auth_digest)"
    )
    assert book.take() == ()
    assert [kept.partition(" ")[2] for kept in book.lines] == [line]


def test_a_trunk_that_comes_up_is_an_event_of_an_edge_once_it_was_down() -> None:
    edge, vnode = FabricNewsBook(is_edge=True), FabricNewsBook(is_edge=False)
    order = (FabricNews.ADJACENCY_UP, FabricNews.ADJACENCY_DOWN, FabricNews.ADJACENCY_UP)
    assert [len(said(edge, news)) for news in order] == [0, 1, 1]
    assert [len(said(vnode, news)) for news in order] == [0, 0, 0]
    assert len(vnode.lines) == 3


def test_a_trunk_that_narrows_and_widens_is_told_to_everybody() -> None:
    book = FabricNewsBook(is_edge=False)
    lines = [*said(book, FabricNews.MTU_TOO_SMALL), *said(book, FabricNews.MTU_ENOUGH)]
    assert lines == [
        f"{TRUNK} does not carry frames as long as promised (why)",
        f"{TRUNK} carries frames as long as promised again (why)",
    ]


@pytest.mark.parametrize("news", FabricNews)
def test_every_word_of_the_rbridge_is_a_sentence(news: FabricNews) -> None:
    book = FabricNewsBook(is_edge=True)
    said(book, news)
    assert news.value not in book.lines[0]


@pytest.mark.parametrize(
    ("news", "is_event"),
    [
        (LispNews.AUTHENTICATION_FAILED, True), (LispNews.FLOODING, True),
        (LispNews.REFUSED, True), (LispNews.OUTDATED, False), (LispNews.MOVED, False),
    ],
)  # fmt: skip
def test_what_every_move_brings_is_no_event_and_what_a_stranger_does_is(
    news: LispNews, *, is_event: bool
) -> None:
    book = FabricNewsBook(is_edge=True)
    book.lisp(LispLog(news, "10.0.0.9", "why"))
    assert len(book.take()) == is_event
    assert "10.0.0.9" in book.lines[0]


def test_the_controller_puts_a_nodes_news_on_the_event_stream() -> None:
    announced: list[tuple[str, ...]] = []
    desk = FabricDesk(
        cast(Any, None), cast(Any, None), cast(Any, None), cast(Any, None),
        keys=lambda: cast(Any, None), edge_lives=lambda _node: None,
        announce=lambda *words: announced.append(words),
    )  # fmt: skip
    desk._tell(NodeNews(node_id=NodeId("marne-v1"), wish_revision=1, lines=(f"{TRUNK} is down",)))
    assert announced == [("node", "marne-v1", "fabric", f"marne-v1: {TRUNK} is down")]
