"""A short fuzz over the OpenAPI form; ``make drill PART=serving`` makes thousands of requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rb.serving.adapters import Adapter
from tests.serving.served import Served


@pytest.fixture
def served(models: dict[str, Adapter]) -> Iterator[Served]:
    made = Served(models)
    yield made
    made.stop()


def test_fuzz(served: Served) -> None:
    from tests.serving.fuzz import fuzz

    statuses = fuzz(served, 3)
    assert sum(statuses.values()) >= 30
    assert statuses[200] > 3
    assert statuses[422] > 3
