"""``picows`` on uvloop, an echo server: PORT."""

import sys

import picows
import uvloop


class Echo(picows.WSListener):
    """Sends every message back."""

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        """One frame came."""
        if frame.msg_type == picows.WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        elif frame.msg_type in (picows.WSMsgType.TEXT, picows.WSMsgType.BINARY):
            transport.send(frame.msg_type, frame.get_payload_as_bytes())


async def main() -> None:
    """Serves until it is ended."""
    server = await picows.ws_create_server(
        lambda _request: Echo(), "127.0.0.1", int(sys.argv[1]), reuse_port=True
    )
    await server.serve_forever()


uvloop.run(main())
