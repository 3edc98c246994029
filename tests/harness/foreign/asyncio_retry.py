"""A WebSocket echo server on asyncio, of the websockets package: asyncio_retry.py PORT BACKLOG.

At EMFILE asyncio's selector loop goes on for the length of its backlog (``for _ in range(backlog)``
in ``_accept_connection``, Lib/asyncio/selector_events.py), one log record each, and each of them
puts the listener back a second later.
"""

import asyncio
import contextlib
import sys

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed


async def echo(connection: ServerConnection) -> None:
    """Sends back what comes."""
    with contextlib.suppress(ConnectionClosed):
        async for message in connection:
            await connection.send(message)


async def main() -> None:
    """Serves until it is killed."""
    async with serve(echo, "127.0.0.1", int(sys.argv[1]), backlog=int(sys.argv[2])) as server:
        await server.serve_forever()


asyncio.run(main())
