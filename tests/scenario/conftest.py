"""What stories of a whole federation have in common."""

from collections.abc import AsyncIterator

import pytest
from tests.scenario.api.conversation import Federation


@pytest.fixture
async def federation() -> AsyncIterator[Federation]:
    bench = Federation()
    await bench.open()
    yield bench
    await bench.close()
