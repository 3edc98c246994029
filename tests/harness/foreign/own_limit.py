"""own_limit.py PORT MOST: closes at once what comes beyond MOST, with descriptors to spare."""

import asyncio
import sys

from upgrade import answer

OPEN = set()


async def serve(reader, writer):
    """One connection."""
    if len(OPEN) >= int(sys.argv[2]):
        writer.close()
        return
    OPEN.add(writer)
    try:
        writer.write(answer(await reader.readuntil(b"\r\n\r\n")))
        while await reader.read(4096):
            pass
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        OPEN.discard(writer)
        writer.close()


async def main():
    """Serves until it is ended."""
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()


asyncio.run(main())
