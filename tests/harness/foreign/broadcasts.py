"""broadcasts.py PORT keep|drop SIZE: sends SIZE bytes to each client, 20 times a second.

keep: whether or not it reads, so that what it does not take piles up here.
drop: not to one for which 64 kB wait already.
The kernel's buffer is small, so that it is full at once.
"""

import asyncio
import socket
import sys

import upgrade

PORT, KIND, SIZE = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
INTERVAL_S = 0.05
MOST_BYTES = 65_536
clients = set()


class Client(asyncio.Protocol):
    def __init__(self):
        self.head = b""
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport
        kernel = transport.get_extra_info("socket")
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MOST_BYTES)

    def connection_lost(self, exc):
        clients.discard(self)

    def data_received(self, data):
        if self in clients:
            return
        self.head += data
        if b"\r\n\r\n" in self.head:
            self.transport.write(upgrade.answer(self.head))
            clients.add(self)

    def tell(self):
        if KIND == "keep" or self.transport.get_write_buffer_size() <= MOST_BYTES:
            self.transport.write(b"\x82\x7e" + SIZE.to_bytes(2, "big") + b"x" * SIZE)


async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Client, "127.0.0.1", PORT, backlog=512)
    async with server:
        while True:
            await asyncio.sleep(INTERVAL_S)
            for each in list(clients):
                each.tell()


asyncio.run(main())
