"""blocking_check.py PORT SECONDS: asks a service with a blocking call at each handshake.

While it waits those SECONDS its event loop serves nobody, at no CPU. The backlog is long enough
that nothing overflows, so that no counter of the kernel tells.
"""

import asyncio
import socket
import sys
import threading
import time

from upgrade import answer


def token_service(listener, seconds):
    """Stands for a database or another host that needs its time."""
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.recv(64)
            time.sleep(seconds)
            connection.sendall(b"ok\n")


def check_token(address):
    """What a client library without asyncio does in a coroutine."""
    with socket.create_connection(address) as service:
        service.sendall(b"token\n")
        service.recv(64)


async def main():
    """Serves until it is ended."""
    listener = socket.create_server(("127.0.0.1", 0))
    seconds = float(sys.argv[2])
    threading.Thread(target=token_service, args=(listener, seconds), daemon=True).start()

    async def serve(reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            check_token(listener.getsockname())
            writer.write(answer(head))
            while await reader.read(4096):
                pass
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=2048)
    await server.serve_forever()


asyncio.run(main())
