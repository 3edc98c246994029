"""Compiles and loads eBPF in a process of its own and hands over the descriptors.

``python -P -m probes.bpf_compile FD`` reads one request (JSON) from its standard input and sends
one answer with all map and program descriptors over the UNIX socket FD, then ends. LLVM's memory
(150 MB) ends with it, and a compiler that crashes takes nothing along. What bcc and the verifier
print goes to standard error, where ``probes/bpf_program.py`` reads it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from probes.bcc_import import import_bcc
from probes.errors import ProbeUnavailableError
from probes.kernel_tree import kernel_tree

CFLAGS = ("-Wno-address-of-packed-member", "-Wno-unused-function", "-Wno-macro-redefined")


def compile_and_load(request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """Does what the request says.

    Args:
        request: ``text`` (C), ``flags`` (of clang), ``constants`` (name to number), ``programs``
            (name to BPF_PROG_TYPE_*), ``maps`` (names), ``attach_types`` (name to BPF_*, where
            needed), ``keep`` (where ``bpf_cache`` keeps it, if at all).

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
        try:
            wanted = request.get("attach_types", {})
            extra = {"attach_type": wanted[name]} if name in wanted else {}  # bcc 0.18 has none
            loaded = compiled.load_func(name, program_type, **extra)
        except Exception as error:  # noqa: BLE001  # as above
            answer["refused"][name] = str(error)
            continue
        answer["programs"].append(name)
        descriptors.append(loaded.fd)
    if not answer["refused"] and "keep" in request:
        from probes import bpf_cache  # numpy, which nothing else here needs

        bpf_cache.keep(Path(request["keep"]), bcc.libbcc.lib, compiled.module, request)
    return answer, descriptors


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
