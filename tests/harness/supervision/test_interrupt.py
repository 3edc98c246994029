"""A signal ends a recording and leaves the verdict; a second one ends the command."""

from __future__ import annotations

import os
import signal

import pytest

from harness.supervision import supervisor
from harness.supervision.supervisor import Interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_only_a_second_signal_ends_the_conclusion(number, monkeypatch):
    monkeypatch.setattr(supervisor, "_AGAIN_S", -1.0)
    interrupt = Interrupt()
    with interrupt.caught():
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # while it records: impatience hurries nobody
        assert interrupt.signal_name == number.name
        interrupt.begin_conclusion()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


def test_a_first_signal_during_the_conclusion_is_noted():
    interrupt = Interrupt()
    with interrupt.caught():
        interrupt.begin_conclusion()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.signal_name == "SIGINT"


def test_the_same_ctrl_c_twice_is_one():
    interrupt = Interrupt()
    with interrupt.caught():
        interrupt.begin_conclusion()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
