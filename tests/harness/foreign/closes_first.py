"""closes_first.py SECONDS PORT: answers upgrades, and closes each connection after SECONDS.

Without a close frame, and before its client does, so that TIME_WAIT is on its side.
"""

import asyncio
import sys

from upgrade import answer


async def serve(reader, writer):
    """One connection."""
    try:
        writer.write(answer(await reader.readuntil(b"\r\n\r\n")))
        await writer.drain()
        await asyncio.sleep(float(sys.argv[1]))
    except (OSError, asyncio.IncompleteReadError):
        pass
    writer.close()


async def main():
    """Serves until it is killed."""
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[2]), backlog=1024)
    await server.serve_forever()


asyncio.run(main())
