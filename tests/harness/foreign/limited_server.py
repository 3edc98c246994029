"""limited_server.py PORT KIND [N]: meets a limit that is not one of descriptors.

threads: a thread for each connection, as long as the system gives one.
mappings: N mappings for each connection, of two protections, so that the kernel joins none.
hash: a password hash of N rounds in each handshake, on the event loop.
asks: each handshake asks a service that takes N milliseconds, with a blocking call.
replaces: a worker that holds N connections closes them and ends with status 0 half a second after
    another one has taken its place, as at a reload.
"""

import asyncio
import base64
import contextlib
import hashlib
import mmap
import os
import socket
import sys
import threading
import time

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
PORT, KIND = int(sys.argv[1]), sys.argv[2]
N = int(sys.argv[3]) if len(sys.argv) > 3 else 0


def reply(head):
    key = next(line.split(b": ")[1] for line in head.split(b"\r\n") if b"-WebSocket-Key" in line)
    accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


def serve_in_thread(connection):
    with contextlib.suppress(OSError), connection:
        connection.sendall(reply(connection.recv(4096)))
        while connection.recv(4096):
            pass


def serve_threads(listener):
    threading.stack_size(128 << 10)
    while True:
        connection, _ = listener.accept()
        try:
            threading.Thread(target=serve_in_thread, args=(connection,), daemon=True).start()
        except RuntimeError as error:
            print(f"RuntimeError: {error}", file=sys.stderr, flush=True)
            connection.close()


def make_mappings():
    made = []
    try:
        for index in range(N):
            prot = mmap.PROT_READ | (mmap.PROT_WRITE if index % 2 else 0)
            made.append(mmap.mmap(-1, 4096, flags=PRIVATE, prot=prot))
    except OSError:
        for each in made:  # leaves the interpreter some room
            each.close()
        raise
    return made


def answer_slowly(listener):
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.recv(64)
            time.sleep(N / 1000)
            connection.sendall(b"ok\n")


def check_token(address):
    with socket.create_connection(address) as service:
        service.sendall(b"token\n")
        return service.recv(64) == b"ok\n"


def hash_password(head):
    return hashlib.pbkdf2_hmac("sha256", head, b"salt", N)


async def serve_loop(listener, held):
    address = None
    if KIND == "asks":
        service = socket.create_server(("127.0.0.1", 0))
        address = service.getsockname()
        threading.Thread(target=answer_slowly, args=(service,), daemon=True).start()

    async def serve(reader, writer):
        mappings = []
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                if KIND == "mappings":
                    mappings = make_mappings()
                elif KIND == "hash":
                    hash_password(head)
                elif KIND == "asks":
                    check_token(address)
                writer.write(reply(head))
                held.append(writer)
                while await reader.read(4096):
                    pass
            finally:
                for each in mappings:
                    each.close()
                writer.close()

    server = await asyncio.start_server(serve, sock=listener, backlog=2048)
    await server.serve_forever()


async def hold_and_end(listener):
    """A worker: it tells its parent when it holds N, and at a word closes all and ends well."""
    held = []
    serving = asyncio.create_task(serve_loop(listener, held))
    while len(held) < N:
        await asyncio.sleep(0.01)
    os.write(1, b"full\n")
    await asyncio.get_running_loop().run_in_executor(None, os.read, 0, 64)
    serving.cancel()
    for writer in held:
        writer.close()
    await asyncio.sleep(0.05)
    os._exit(0)


def worker(listener):
    """Forks one: its pid, and pipes to say a word to it and to hear one."""
    heard, said = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(heard[0], 0)
        os.dup2(said[1], 1)
        asyncio.run(hold_and_end(listener))
    return pid, heard[1], said[0]


def main():
    listener = socket.create_server(("127.0.0.1", PORT), backlog=2048)
    if KIND == "threads":
        serve_threads(listener)
    elif KIND == "replaces":
        pid, word, answer = worker(listener)
        os.read(answer, 64)
        time.sleep(1.5)  # a successor is one that started later than the first
        successor, *_ = worker(listener)
        time.sleep(0.5)
        os.write(word, b"end\n")
        os.waitpid(pid, 0)
        os.waitpid(successor, 0)
    else:
        asyncio.run(serve_loop(listener, []))


main()
