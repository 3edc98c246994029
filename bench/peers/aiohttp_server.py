"""``aiohttp`` on asyncio, an echo server: PORT."""

import sys

from aiohttp import WSMsgType, web


async def echo(request: web.Request) -> web.WebSocketResponse:
    """Sends every message back."""
    socket = web.WebSocketResponse(compress=False)
    await socket.prepare(request)
    async for message in socket:
        if message.type == WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type == WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


application = web.Application()
application.router.add_get("/", echo)
web.run_app(
    application, host="127.0.0.1", port=int(sys.argv[1]), reuse_port=True, print=None,
    access_log=None, shutdown_timeout=0.5,
)  # fmt: skip
