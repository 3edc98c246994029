"""What the probe process and its parser of names say to each other: packets of flat arrays.

A request is a head, an array of numbers and at most one descriptor; an answer is a head and, for
addresses, three arrays and the bytes of the names. Who asks believes nothing of an answer: lengths,
kinds and offsets are checked before anything of it is taken.
"""

from __future__ import annotations

import array
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate, pairwise

MOST_ADDRESSES = 128
"""Of one request: their names fit into one packet of a socket's usual buffer (212,992 bytes)."""
MOST_NAME_BYTES = 1_200  # 300 characters
MOST_PACKET_BYTES = 200_000
READY = 0
"""Number of the answer that nobody asked for: it has been started."""
_REQUEST = struct.Struct("<IIQQI")
_ANSWER = struct.Struct("<IIIII")
_ENDED = struct.Struct("<6si")
_U32, _U64 = "I", "Q"  # of array.array, on all that Linux runs on with 64 bits
_ENDED_WORD = b"ended\n"
_MOST_TEXT_BYTES = 256  # build id and name of a debug file


class Ask(IntEnum):
    """What is asked for; ``key`` and ``other`` are its numbers."""

    MAPS = 1  # key: of a set of mappings, descriptor: their text
    FILE = 2  # key: set, other: line of its text; descriptor: the file, or none
    DEBUG = 3  # likewise; descriptor: what may be the debug file
    FINISH = 4  # key: set, other: line; no more descriptors of it come
    PERF_MAP = 5  # key: pid; descriptor: its map
    NAMES = 6  # key: set, other: pid; numbers: addresses
    FORGET_PIDS = 7  # numbers: pids
    FORGET_SETS = 8  # numbers: sets
    IS_GO = 9  # descriptor: a program


class Status(IntEnum):
    """How it went."""

    NO = 0  # asked for a yes or a no
    YES = 1
    NO_SET = 2  # no such set, or line of it, is known: it began anew
    WANTS_DEBUG = 3  # build id and name follow
    NO_MEMORY = 4
    BAD = 5


class Kind(IntEnum):
    """What is known of an address."""

    UNKNOWN = 0  # it is in no mapping
    FUNCTION = 1  # of a file: its name
    MADE = 2  # by a runtime: the name in its map
    MODULE = 3  # without a name: file and offset
    WANTS_FILE = 4  # in a mapping whose file is not there yet
    NO_MAPS = 5  # the set of mappings is not known


@dataclass(frozen=True, slots=True)
class Request:
    """One request, without its descriptor."""

    number: int
    ask: int
    key: int
    other: int
    numbers: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    Attributes:
        number: Of its request.
        status: As ``Status``.
        kinds: One for each address.
        lines: Where the line of its mapping begins in the text, likewise.
        texts: Names, likewise; or build id and name of a debug file.
    """

    number: int
    status: int
    kinds: Sequence[int] = ()
    lines: Sequence[int] = ()
    texts: Sequence[str] = ()


def pack_request(request: Request) -> bytes:
    """The packet."""
    head = _REQUEST.pack(
        request.number, request.ask, request.key, request.other, len(request.numbers)
    )
    return head + array.array(_U64, request.numbers).tobytes()


def unpack_request(packet: bytes) -> Request:
    """Reads what ``pack_request`` made.

    Raises:
        ValueError, struct.error: It is none.
    """
    number, ask, key, other, count = _REQUEST.unpack_from(packet)
    numbers = struct.unpack_from(f"<{count}Q", packet, _REQUEST.size)
    return Request(number, ask, key, other, numbers)


def pack_answer(answer: Answer) -> bytes:
    """The packet; names are cut to ``MOST_NAME_BYTES``."""
    texts = [text.encode(errors="replace")[:MOST_NAME_BYTES] for text in answer.texts]
    head = _ANSWER.pack(
        answer.number, answer.status, len(answer.kinds), len(texts), sum(map(len, texts))
    )
    ends = accumulate(map(len, texts))
    flat = array.array(_U32, [*answer.kinds, *answer.lines, *ends])
    return b"".join([head, flat.tobytes(), *texts])


def unpack_answer(packet: bytes, addresses_count: int) -> Answer:
    """Reads an answer that may be anything.

    Args:
        packet: As it came.
        addresses_count: So many were asked for.

    Raises:
        ValueError: It is not what an honest one would be.
    """
    if len(packet) < _ANSWER.size:
        raise ValueError("it is shorter than its head")
    number, status, count, texts_count, texts_bytes = _ANSWER.unpack_from(packet)
    if status not in _STATUSES:
        raise ValueError(f"there is no status {status}")
    wanted_texts = addresses_count if status == Status.YES else 0
    wanted_texts = 2 if status == Status.WANTS_DEBUG else wanted_texts
    wanted = addresses_count if status == Status.YES else 0
    if count != wanted or texts_count != wanted_texts:
        raise ValueError(f"{count} rows and {texts_count} texts for {addresses_count} addresses")
    if len(packet) != _ANSWER.size + 4 * (2 * count + texts_count) + texts_bytes:
        raise ValueError("its length is not that of its parts")
    flat = struct.unpack_from(f"<{2 * count + texts_count}I", packet, _ANSWER.size)
    kinds, lines, ends = flat[:count], flat[count : 2 * count], flat[2 * count :]
    texts = _texts(packet[_ANSWER.size + 4 * len(flat) :], ends)
    if not _KINDS.issuperset(kinds):
        raise ValueError("there is no such kind")
    if status == Status.WANTS_DEBUG and max(map(len, texts)) > _MOST_TEXT_BYTES:
        raise ValueError("no file has such a name")
    return Answer(number, status, kinds, lines, texts)


def pack_ended(exit_code: int) -> bytes:
    """What is said instead of an answer when who was to give it ended.

    Args:
        exit_code: Status, or a signal as a negative number.
    """
    return _ENDED.pack(_ENDED_WORD, exit_code)


def unpack_ended(packet: bytes) -> int | None:
    """Its exit code; None when the packet is an answer."""
    if len(packet) != _ENDED.size or not packet.startswith(_ENDED_WORD):
        return None
    return int(_ENDED.unpack(packet)[1])


_STATUSES, _KINDS = frozenset(map(int, Status)), frozenset(map(int, Kind))


def _texts(blob: bytes, ends: Sequence[int]) -> list[str]:
    spans = list(pairwise((0, *ends)))
    if (ends and ends[-1] != len(blob)) or not all(
        0 <= end - start <= MOST_NAME_BYTES for start, end in spans
    ):
        raise ValueError("its texts are not where it says")
    return [blob[start:end].decode(errors="replace") for start, end in spans]
