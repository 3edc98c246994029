"""plain_server.py PORT [WORKERS]: asyncio's own server, which answers upgrades and reads on.

The path of a request asks for more: /block/S sleeps in the event loop, /spin/S calculates in it,
/hot goes on calculating in it, /exit/N ends the process, /dial/PORT/N opens so many connections to
another server and keeps them, as a proxy does. With WORKERS processes share the listener, and one
that ends is replaced.
"""

import asyncio
import base64
import hashlib
import os
import signal
import socket
import sys
import time

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
dialled = []
BACKGROUND = []


def calculate(seconds):
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        sum(range(1000))


async def keep_calculating():
    await asyncio.sleep(0.05)  # the answer goes out first
    while True:
        calculate(0.05)
        await asyncio.sleep(0)


async def dial(port, count):
    for _ in range(count):
        try:
            dialled.append(await asyncio.open_connection("127.0.0.1", port))
        except OSError as error:
            print(error)


async def serve(reader, writer):
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
        return
    key = next(line.split(b": ")[1] for line in head.split(b"\r\n") if b"-WebSocket-Key" in line)
    accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )
    await writer.drain()
    _, what, *value = head.split(b" ")[1].decode().split("/")
    if what == "block":
        await asyncio.sleep(0.05)  # the answer goes out first
        time.sleep(float(value[0]))
    elif what == "spin":
        await asyncio.sleep(0.05)
        calculate(float(value[0]))
    elif what == "hot" and not BACKGROUND:
        BACKGROUND.append(asyncio.create_task(keep_calculating()))
    elif what == "dial":
        await dial(int(value[0]), int(value[1]))
    elif what == "exit":
        os._exit(int(value[0]))
    while await reader.read(4096):
        pass
    writer.close()


async def run(listener):
    server = await asyncio.start_server(serve, sock=listener)
    await server.serve_forever()


def main():
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=100)
    workers = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    if not workers:
        asyncio.run(run(listener))
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    living = 0
    while True:
        while living < workers:
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                asyncio.run(run(listener))
            living += 1
        os.wait()
        living -= 1


if __name__ == "__main__":
    main()
