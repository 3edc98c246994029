"""asking_server.py KIND COUNT PORT: asks somebody else for something before each upgrade.

children  starts a child with three pipes for each connection; COUNT is its RLIMIT_NOFILE
inotify   asks for an instance of inotify for each, and answers 500 when it gets none
store     asks a process behind it, which takes COUNT clients and closes the others with a word
nobody    asks at a port where nobody listens, and closes its client; COUNT says nothing
forbids   answers whoever comes beyond COUNT with 403, as too many from one address
halts     stops itself by a signal when it has let COUNT in
"""

import asyncio
import ctypes
import os
import resource
import signal
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from upgrade import answer

KIND, COUNT, PORT = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
PR_SET_PDEATHSIG = 1
C = ctypes.CDLL(None, use_errno=True)
KEPT = []
BEHIND = ("127.0.0.1", 1)


def error(code, said):
    text = (
        f"HTTP/1.1 {code} Error\r\nContent-Length: {len(said)}\r\nConnection: close\r\n\r\n{said}"
    )
    return text.encode()


def serve_behind(listener):
    kept = []
    while True:
        connection = listener.accept()[0]
        if len(kept) >= COUNT:
            connection.sendall(b"-ERR max number of clients reached\r\n")
            connection.close()
            continue
        connection.sendall(b"+OK\r\n")
        kept.append(connection)


async def granted():
    """What is to be answered instead of the upgrade; b"" where nothing is against it."""
    if KIND == "children":
        pipe = asyncio.subprocess.PIPE
        KEPT.append(
            await asyncio.create_subprocess_exec(
                "sleep", "60", stdin=pipe, stdout=pipe, stderr=pipe
            )
        )
    elif KIND == "inotify":
        descriptor = C.inotify_init1(0)
        if descriptor < 0:
            print("Error:", OSError(ctypes.get_errno(), "watch"), file=sys.stderr, flush=True)
            return error(500, "cannot watch")
        KEPT.append(descriptor)
    elif KIND in ("store", "nobody"):
        reader, writer = await asyncio.open_connection(*BEHIND)
        KEPT.append(writer)
        if not (await reader.readline()).startswith(b"+"):
            return error(500, "no session")
    elif KIND == "forbids":
        if len(KEPT) >= COUNT:
            return error(403, "too many connections from your address")
        KEPT.append(None)
    elif KIND == "halts":
        KEPT.append(None)
        if len(KEPT) == COUNT:
            os.kill(os.getpid(), signal.SIGSTOP)
    return b""


async def serve(reader, writer):
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        refusal = await granted()
        writer.write(refusal or answer(head))
        await writer.drain()
        while not refusal and await reader.read(4096):
            pass
    except (OSError, asyncio.IncompleteReadError) as reason:
        print(f"{type(reason).__name__}: {reason}", file=sys.stderr, flush=True)
    writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", PORT, backlog=1024)
    await server.serve_forever()


if KIND == "children":
    resource.setrlimit(resource.RLIMIT_NOFILE, (COUNT, COUNT))
if KIND == "store":
    LISTENER = socket.create_server(("127.0.0.1", 0), backlog=1024)
    BEHIND = LISTENER.getsockname()
    if os.fork() == 0:
        C.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        serve_behind(LISTENER)
    LISTENER.close()
asyncio.run(main())
