"""``websockets`` on asyncio, an echo server: PORT [BACKLOG]."""

import asyncio
import sys

from websockets.asyncio.server import ServerConnection, serve


async def echo(connection: ServerConnection) -> None:
    """Sends every message back."""
    async for message in connection:
        await connection.send(message)


async def main() -> None:
    """Serves until it is ended."""
    port, backlog = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100
    async with serve(
        echo,
        "127.0.0.1",
        port,
        compression=None,
        ping_interval=None,
        reuse_port=True,
        backlog=backlog,  # asyncio's own default is 100
    ) as server:
        await server.serve_forever()


asyncio.run(main())
