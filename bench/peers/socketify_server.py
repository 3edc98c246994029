"""``socketify`` (uWebSockets), an echo server: PORT. uWebSockets listens with SO_REUSEPORT."""

import sys
from typing import Any

from socketify import App, AppListenOptions, CompressOptions


def echo(socket: Any, message: str | bytes, opcode: int) -> None:
    """Sends a message back."""
    socket.send(message, opcode)


application = App()
application.ws(
    "/*",
    {
        "compression": CompressOptions.DISABLED,
        "max_payload_length": 1 << 20,
        "idle_timeout": 0,
        "message": echo,
    },
)
application.listen(AppListenOptions(port=int(sys.argv[1]), host="127.0.0.1"))
application.run()
