"""What the tests of several rooms need."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

# A busy machine is no defect of the code under test.
settings.register_profile("connscope", deadline=None)
settings.load_profile("connscope")


@pytest.fixture
def deadline() -> Callable[..., Any]:
    """``deadline("what it waits for", condition)`` returns the condition's first true value."""

    def wait(what: str, condition: Callable[[], Any], *, seconds: float = 20.0) -> Any:
        end_s = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end_s, f"waited {seconds:.0f} s for: {what}"
            time.sleep(0.005)
        return value

    return wait
