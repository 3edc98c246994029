"""An ASGI echo application for ``uvicorn`` and ``hypercorn``."""

from typing import Any


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Sends every message back."""
    if scope["type"] != "websocket":
        return
    await receive()  # websocket.connect
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        text, data = message.get("text"), message.get("bytes")
        body = {"text": text} if text is not None else {"bytes": data}
        await send({"type": "websocket.send", **body})
