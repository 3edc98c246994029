"""Compiles and loads eBPF in a process of its own and hands over the descriptors.

``python -P -m probes.bpf_loader.compile FD`` reads one request (JSON) from its standard input and
sends one answer with all map and program descriptors over the UNIX socket FD, then ends. LLVM's
memory (150 MB) ends with it, and a compiler that crashes takes nothing along. What bcc and the
verifier print goes to standard error, where ``probes/bpf_loader/program.py`` reads it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probes.bpf_loader.bcc_import import import_bcc
from probes.bpf_loader.kernel_tree import kernel_tree
from probes.contract.errors import ProbeUnavailableError

_LOG_MOST_BYTES = 1 << 16
_REASON_MOST_CHARACTERS = 300
_SAYS_NOTHING = (
    "processed ",
    "bpf: Failed to load",
    "HINT:",
    "If your",
    "stack depth",
    "verification time",
)
_INSTRUCTION = re.compile(r"\d+: \(")

CFLAGS = ("-Wno-address-of-packed-member", "-Wno-unused-function", "-Wno-macro-redefined")


def compile_and_load(request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """Does what the request says.

    Args:
        request: ``text`` (C), ``flags`` (of clang), ``constants`` (name to number), ``programs``
            (name to BPF_PROG_TYPE_*), ``maps`` (names), ``attach_types`` (name to BPF_*, where
            needed), ``keep`` (where ``cache`` keeps it, if at all).

    Returns:
        The answer and the descriptors that it counts: ``maps`` and ``programs`` list names in
        the order of the descriptors, ``refused`` says why a program did not load, ``error`` and
        ``fix`` when nothing did.
    """
    try:
        bcc = import_bcc()
    except ProbeUnavailableError as error:
        return {"error": error.message, "fix": error.fix}, []
    flags = [f"-D{name}={int(value)}" for name, value in request["constants"].items()]
    with kernel_tree() as tree:
        os.environ["BCC_KERNEL_SOURCE"] = str(tree)
        try:
            compiled = bcc.BPF(text=request["text"], cflags=[*request["flags"], *flags])
        except Exception as error:  # noqa: BLE001  # bcc raises bare Exception; it is reported
            return {"error": str(error), "fix": ""}, []
    descriptors: list[int] = []
    answer: dict[str, Any] = {"maps": [], "programs": [], "refused": {}}
    for name in request["maps"]:
        fd = bcc.libbcc.lib.bpf_table_fd(compiled.module, name.encode())
        if fd < 0:
            return {"error": f"the object has no map {name}", "fix": ""}, []
        answer["maps"].append(name)
        descriptors.append(fd)
    for name, program_type in request["programs"].items():
        wanted = request.get("attach_types", {})
        extra = {"attach_type": wanted[name]} if name in wanted else {}  # bcc 0.18 has none
        with _captured_stderr() as words:
            try:
                loaded = compiled.load_func(name, program_type, **extra)
            except Exception as error:  # noqa: BLE001  # as above
                loaded, words.error = None, str(error)
        if loaded is None:
            answer["refused"][name] = refusal_reason(words.error, words.log)
            continue
        answer["programs"].append(name)
        descriptors.append(loaded.fd)
    if not answer["refused"] and "keep" in request:
        from probes.bpf_loader import cache as bpf_cache  # numpy, which nothing else here needs

        bpf_cache.keep(Path(request["keep"]), bcc.libbcc.lib, compiled.module, request)
    return answer, descriptors


@dataclass(slots=True)
class _Words:
    """What was said while a program was loaded."""

    error: str = ""
    log: str = ""


@contextlib.contextmanager
def _captured_stderr() -> Iterator[_Words]:
    """What bcc and the verifier print meanwhile; the log of one program can be megabytes."""
    words, own = _Words(), os.dup(2)
    with tempfile.TemporaryFile() as stream:
        os.dup2(stream.fileno(), 2)
        try:
            yield words
        finally:
            os.dup2(own, 2)
            os.close(own)
        stream.seek(max(0, stream.tell() - _LOG_MOST_BYTES))
        words.log = stream.read().decode(errors="replace")


def refusal_reason(error: str, log: str) -> str:
    """Why a program was refused, in one line.

    Args:
        error: What bcc says.
        log: What was printed: the verifier's log ends with the instruction, the reason and a count.
    """
    lines = [line.strip() for line in log.split("\n")]
    told = [line for line in lines if line and not line.startswith(_SAYS_NOTHING)]
    if not told:
        return _one_line(error)
    instruction = next((line for line in reversed(told[:-1]) if _INSTRUCTION.match(line)), "")
    return _one_line(f"{instruction}: {told[-1]}" if instruction else told[-1])


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_REASON_MOST_CHARACTERS]


def main() -> int:
    """Serves one request."""
    request = json.loads(sys.stdin.buffer.read())
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        answer, descriptors = compile_and_load(request)
        socket.send_fds(channel, [json.dumps(answer).encode()], descriptors)
    sys.stderr.flush()
    os._exit(0)  # bcc's and LLVM's exit handlers take 50 ms to free what the kernel frees anyway


if __name__ == "__main__":
    sys.exit(main())
