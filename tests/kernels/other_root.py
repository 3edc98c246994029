"""``python -m tests.kernels.other_root ROOT``: every program, compiled by the bcc of another root.

The compiler decides how wide a load is and in which order loads come, and with that whether a
kernel takes a program. ROOT is a root file system with another bcc, such as Debian 13's:

    debootstrap --include=python3-bpfcc,python3-numpy trixie ROOT

Only ``probes/bpf_loader/compile.py`` runs in it; the running kernel takes what it makes, and the
iterator over the sockets is read once. Ends with 1 when a program is refused.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from probes.bpf_loader import syscalls as bpf_kernel
from probes.bpf_loader.btf import Btf
from probes.bpf_loader.program import compose, request_of
from probes.ebpf import shared as bpf_shared
from probes.ebpf import sources as bpf_sources
from probes.ebpf.sources import SourceBuilder
from probes.ebpf.tcp_iterator import PROGRAM

PROJECT = Path(__file__).resolve().parents[2]
OBJECTS: dict[str, Sequence[SourceBuilder]] = {
    "default": bpf_shared._DEFAULT,
    "tcp_snapshot by helper": [bpf_sources.tcp_snapshot_by_helper],
    "runq_latency": [bpf_sources.runq_latency],
    "skb_allocs": [bpf_sources.skb_allocs],
}
_TIMEOUT_S = 300
_RECORD_BYTES = 48


Answer = tuple[dict[str, Any], list[int]]


def ask(root: Path, btf: Btf, builders: Sequence[SourceBuilder]) -> Answer:
    """Has an object compiled in the root: the answer of ``compile_and_load``, its descriptors."""
    request = request_of(*compose(btf, [build(btf) for build in (bpf_sources.common, *builders)]))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        inside, project = shlex.quote(str(root)), shlex.quote(str(PROJECT))
        script = (  # its mounts go with its namespace
            f"mount --bind /proc {inside}/proc && mount --rbind /sys {inside}/sys && "
            f"mount --bind {project} {inside}/mnt && cd / && "
            f"exec env PYTHONPATH=/mnt PYTHONDONTWRITEBYTECODE=1 "
            f"chroot {inside} python3 -P -m probes.bpf_loader.compile {theirs.fileno()}"
        )
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script],
            input=json.dumps(request).encode(),
            stderr=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
            timeout=_TIMEOUT_S,
            check=False,
        )
        theirs.close()
        message, fds, _, _ = socket.recv_fds(ours, 1 << 16, 250)
    return json.loads(message) if message else {"error": done.stderr.decode()[-600:]}, list(fds)


def read_sockets(answer: dict[str, Any], fds: Sequence[int]) -> int:
    """Runs the iterator, where it is part of the object; bytes that it wrote, 0 without it."""
    if PROGRAM not in answer["programs"]:
        return 0
    program_fd = fds[len(answer["maps"]) + answer["programs"].index(PROGRAM)]
    link_fd = bpf_kernel.attach_iterator(program_fd)
    try:
        return len(bpf_kernel.read_iterator(link_fd, _RECORD_BYTES))
    finally:
        os.close(link_fd)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    words = sys.argv[1:] if argv is None else argv
    if len(words) != 1 or not Path(words[0], "usr").is_dir():
        print(__doc__, file=sys.stderr)
        return 2
    btf, is_good = Btf.of_kernel(), True
    for name, builders in OBJECTS.items():
        answer, fds = ask(Path(words[0]).resolve(), btf, builders)
        refused = answer.get("error") or answer["refused"]
        is_good = is_good and not refused
        print(f"{name}: {refused or 'taken: ' + ', '.join(answer['programs'])}")
        if not refused and (read_bytes := read_sockets(answer, fds)):
            print(f"{name}: the iterator wrote {read_bytes} bytes")
        for fd in fds:
            os.close(fd)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
