"""The parser of names as the probe process has it: started, asked, and not waited for for ever.

One that dies, hangs or answers nonsense costs names: whoever asks gets ``ParserGoneError``, and the
next one may be answered by its successor, which knows nothing yet. ``trouble`` says what was, for
the health of the probes.
"""

from __future__ import annotations

import array
import os
import signal
import socket
import subprocess
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import cache

from probes.rights.own_process import start_module
from probes.symbols import name_messages
from probes.symbols.name_messages import Answer, Ask, Request, Status

ANSWER_LIMIT_S = 5.0
"""A file of 150 MB of symbols is read in two; one that never ends is killed after five of CPU."""
_START_LIMIT_S = 60.0
_END_LIMIT_S = 2.0
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME")
_STALE = "did not answer in time"


class ParserGoneError(Exception):
    """There is no answer, and none to wait for."""


class NameParserProcess:
    """Starts it when it is asked first, unless ``start`` did before.

    Attributes:
        turn: Grows when it has begun anew: it knows nothing of before.
    """

    def __init__(self) -> None:
        self.turn = 0
        self._socket: socket.socket | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._is_gone = False
        self._number = 0
        self._unanswered = 0
        self._is_ready = False
        self._troubles: Counter[str] = Counter()

    @property
    def pid(self) -> int:
        """Of the process that looks after the one that parses; 0 when it is not started."""
        return self._child.pid if self._child is not None else 0

    @property
    def trouble(self) -> str:
        """What went wrong, for people; '' for nothing."""
        if not self._troubles:
            return ""
        counted = [f"{said} ({count} times)" for said, count in self._troubles.items()]
        return f"the parser of names {', '.join(counted)}: some frames have no names"

    def start(self) -> None:
        """Starts it. While this process may still change users: it becomes one of its own."""
        if self._child is not None or self._is_gone:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            variables = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
            try:
                self._child = start_module(
                    "probes.symbols.name_parser_main",
                    [str(os.getpid()), str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=None,
                    environment=variables | {"OPENBLAS_NUM_THREADS": "1"},  # it gives up threads
                )
            except OSError:
                ours.close()
                self._lose("could not be started")
                return
        ours.settimeout(ANSWER_LIMIT_S)
        self._socket = ours
        weakref.finalize(self, _end, self._child, ours)

    def is_go(self, fd: int) -> bool:
        """Whether a program was written in Go; False where that cannot be told.

        Args:
            fd: Of its file, which is closed.
        """
        try:
            return self.ask(Ask.IS_GO, fd=fd).status == Status.YES
        except ParserGoneError:
            return False

    def ask(
        self, ask: Ask, key: int = 0, other: int = 0, numbers: Sequence[int] = (), fd: int = -1
    ) -> Answer:
        """Asks, and waits for the answer.

        Args:
            ask: For what; see ``probes.symbols.name_messages`` for the rest.
            key: Number.
            other: Number.
            numbers: ``MOST_ADDRESSES`` addresses, or pids, at most.
            fd: Goes with it, and is closed here; -1 for none.

        Raises:
            ParserGoneError: It is gone, late, or answers nonsense.
        """
        try:
            return self._asked(ask, key, other, numbers, fd)
        finally:
            if fd >= 0:
                os.close(fd)

    def _asked(self, ask: Ask, key: int, other: int, numbers: Sequence[int], fd: int) -> Answer:
        self.start()
        if self._socket is None or self._is_gone:
            raise ParserGoneError
        if not self._is_ready:
            self._wait_for_start(self._socket)
        if self._unanswered and not self._catch_up(self._socket):
            raise ParserGoneError
        self._number += 1
        packet = name_messages.pack_request(Request(self._number, ask, key, other, numbers))
        fds = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
        deadline_s = time.monotonic() + ANSWER_LIMIT_S
        self._unanswered = self._number
        try:
            self._socket.settimeout(ANSWER_LIMIT_S)
            self._socket.sendmsg([packet], fds)
            while (left_s := deadline_s - time.monotonic()) > 0:
                self._socket.settimeout(left_s)
                answer = self._received(self._socket, len(numbers) if ask == Ask.NAMES else 0)
                if answer is not None and answer.number == self._number:
                    self._unanswered = 0
                    return answer
        except TimeoutError:
            pass
        except OSError as error:
            self._lose("is gone")
            raise ParserGoneError from error
        self._troubles[_STALE] += 1
        raise ParserGoneError

    def _wait_for_start(self, asked: socket.socket) -> None:
        """It imports for a second, on an emulated host for twenty; it has nothing to read yet."""
        asked.settimeout(_START_LIMIT_S)
        try:
            packet = asked.recv(name_messages.MOST_PACKET_BYTES)
        except OSError as error:
            self._lose("did not start")
            raise ParserGoneError from error
        if not packet:
            self._lose("did not start")
            raise ParserGoneError
        self._is_ready = True

    def _received(self, asked: socket.socket, addresses_count: int) -> Answer | None:
        """The next packet; None for an answer that nobody waits for any more."""
        packet = asked.recv(name_messages.MOST_PACKET_BYTES)
        if not packet:
            self._lose("is gone")
            raise ParserGoneError
        exit_code = name_messages.unpack_ended(packet)
        if exit_code is not None:
            self.turn += 1
            self._unanswered = 0
            self._troubles[_end_words(exit_code)] += 1
            raise ParserGoneError
        number = int.from_bytes(packet[:4], "little")
        if number != self._number:
            return None
        try:
            return name_messages.unpack_answer(packet, addresses_count)
        except ValueError as error:
            self._lose(f"answered nonsense ({error})")
            raise ParserGoneError from error

    def _catch_up(self, asked: socket.socket) -> bool:
        """Takes what came since a request was given up; whether it can be asked again."""
        asked.settimeout(0.0)
        try:
            while self._unanswered:
                packet = asked.recv(name_messages.MOST_PACKET_BYTES)
                if not packet:
                    self._lose("is gone")
                    return False
                if name_messages.unpack_ended(packet) is not None:
                    self.turn += 1
                    self._unanswered = 0
                elif int.from_bytes(packet[:4], "little") == self._unanswered:
                    self._unanswered = 0
        except BlockingIOError:
            return False
        except OSError:
            self._lose("is gone")
            return False
        return True

    def _lose(self, why: str) -> None:
        """It is not asked any more."""
        self._troubles[why] += 1
        self._is_gone = True
        self.turn += 1

    def close(self) -> None:
        """Ends it."""
        self._is_gone = True
        if self._child is not None and self._socket is not None:
            _end(self._child, self._socket)


def _end(child: subprocess.Popen[bytes], asked: socket.socket) -> None:
    asked.close()
    if child.returncode is not None:
        return
    try:
        child.wait(_END_LIMIT_S)
    except subprocess.TimeoutExpired:
        with suppress(OSError):
            child.kill()
        child.wait()


def _end_words(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended with status {exit_code}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"was killed by signal {-exit_code}"


@cache
def name_parser() -> NameParserProcess:
    """The one of this process, for all of its probes."""
    return NameParserProcess()
