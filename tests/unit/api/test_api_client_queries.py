"""What is read or deleted stands in the query: servers look at no body of a GET or a DELETE."""

from nuage.api.client import Client


class Recorder(Client):
    """Remembers what would be sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, object]] = []

    def call(self, verb: str, path: str, body: object = None) -> None:
        """Send nothing."""
        self.sent.append((verb, path, body))


def test_what_is_meant_stands_in_the_query_and_what_is_empty_is_left_out() -> None:
    client = Recorder()
    client.get("/v1/nodes", site="", last=3)
    client.delete("/v1/views", view="v@1#2")
    client.delete("/v1/vms/web")
    assert client.sent == [
        ("GET", "/v1/nodes?last=3", None),
        ("DELETE", "/v1/views?view=v%401%232", None),
        ("DELETE", "/v1/vms/web", None),
    ]
