"""websockets server: PORT echo|silent|closes [CERT KEY]. Prints each connection's first message."""

import asyncio
import ssl
import sys

from websockets.asyncio.server import serve


async def handle(connection):
    if sys.argv[2] == "closes":
        await connection.close(4401, "token missing")
    is_first = True
    async for message in connection:
        if is_first:
            print(repr(message), flush=True)
            is_first = False
        if sys.argv[2] == "echo":
            await connection.send(message)


async def main():
    context = None
    if len(sys.argv) > 3:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[3], sys.argv[4])
    async with serve(handle, "127.0.0.1", int(sys.argv[1]), ssl=context) as server:
        await server.serve_forever()


asyncio.run(main())
