"""websockets server: PORT [CERT KEY]. Path /chat?room=s3cret-1, cookie a=s3cret-2,
header X-Token: s3cret-3; else 403."""

import asyncio
import http
import ssl
import sys

from websockets.asyncio.server import serve


def check(connection, request):
    asked = request.path, request.headers.get("Cookie"), request.headers.get("X-Token")
    if asked != ("/chat?room=s3cret-1", "a=s3cret-2", "s3cret-3"):
        return connection.respond(http.HTTPStatus.FORBIDDEN, "the origin is not allowed\n")
    return None


async def echo(connection):
    async for message in connection:
        assert isinstance(message, str)
        await connection.send(message)


async def main():
    context = None
    if len(sys.argv) > 2:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[2], sys.argv[3])
    async with serve(
        echo,
        "127.0.0.1",
        int(sys.argv[1]),
        ssl=context,
        process_request=check,
        subprotocols=["chat.v2", "chat.v1"],
    ) as server:
        await server.serve_forever()


asyncio.run(main())
