"""The kernel's tools are run to their end: what they print, and how their failures are told."""

import pytest

from nuage.errors import TimedOut, Unavailable
from nuage.tool import Interface, interfaces_told, run_tool


async def test_what_a_tool_prints_is_returned_and_what_it_is_told_reaches_it() -> None:
    assert await run_tool(("cat",), text="add table\n") == "add table"
    assert await run_tool(("sh", "-c", "echo well; echo noise >&2")) == "well"


@pytest.mark.parametrize(
    ("script", "told"),
    [("echo some; echo no such table >&2; exit 1", "no such table"), ("echo why; exit 3", "why")],
)
async def test_its_last_words_are_told_when_it_fails(script: str, told: str) -> None:
    with pytest.raises(Unavailable, match=f"failed: {told}"):
        await run_tool(("sh", "-c", script))


async def test_one_that_is_missing_or_never_ends_is_told() -> None:
    with pytest.raises(Unavailable, match="nuage-no-such-tool is not installed"):
        await run_tool(("nuage-no-such-tool", "--version"))
    with pytest.raises(TimedOut, match="sleep 60"):
        await run_tool(("sleep", "60"), timeout_s=0.05)


TOLD = """[{}, {"ifindex": 3, "ifname": "eth0", "addr_info": [
  {"family": "inet", "local": "10.71.2.120", "prefixlen": 24},
  {"family": "inet", "local": "192.168.9.1", "prefixlen": 16}]}]"""


def test_an_address_is_told_with_its_interface_and_network() -> None:
    assert interfaces_told(TOLD, "10.71.2.120") == (Interface(3, ("10.71.2.0/24",)),)
    assert interfaces_told("", "10.71.2.120") == ()
    with pytest.raises(Unavailable):
        interfaces_told("Object not found", "10.71.2.120")
