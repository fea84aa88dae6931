"""What the tests of this folder share."""

from collections.abc import Iterator

import pytest

from picogpt.engine.lanes import Lanes


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    with Lanes(2) as pool:
        yield pool
