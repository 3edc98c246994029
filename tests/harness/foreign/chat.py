"""chat.py PORT all|echo|ticks US: what a message of one client makes the server send.

all: the same to each client.
echo: the same back to who sent it, 20 times as dear.
ticks: nothing; each client gets a message of its own ten times a second.
A message costs US microseconds of CPU before it goes out, as making JSON of it for each does.
"""

import asyncio
import sys
import time

import upgrade

PORT, KIND, COST_S = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]) / 1e6
TICK_S = 0.1
clients = set()


def work(seconds):
    """Takes so much CPU of its own, whatever others take."""
    end_s = time.thread_time() + seconds
    while time.thread_time() < end_s:
        pass


def frame(payload):
    size = len(payload)
    head = bytes([0x82, size]) if size < 126 else b"\x82\x7e" + size.to_bytes(2, "big")
    return head + payload


class Client(asyncio.Protocol):
    def __init__(self):
        self.data = b""
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, exc):
        clients.discard(self)

    def data_received(self, data):
        self.data += data
        if self not in clients:
            head, end, self.data = self.data.partition(b"\r\n\r\n")
            if not end:
                self.data = head
                return
            self.transport.write(upgrade.answer(head + end))
            clients.add(self)
        while (message := self.message()) is not None:
            if KIND == "all":
                for each in list(clients):
                    each.send(message)
            elif KIND == "echo":
                work(19 * COST_S)
                self.send(message)

    def message(self):
        """The next message of a client (masked: RFC 6455, 5.3), None when it is not all here."""
        if len(self.data) < 6:
            return None
        size, at = self.data[1] & 127, 2
        if size == 126:
            size, at = int.from_bytes(self.data[2:4], "big"), 4
        if len(self.data) < at + 4 + size:
            return None
        mask, payload = self.data[at : at + 4], self.data[at + 4 : at + 4 + size]
        self.data = self.data[at + 4 + size :]
        return bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))

    def send(self, payload):
        work(COST_S)
        self.transport.write(frame(payload))


async def tick():
    while True:
        await asyncio.sleep(TICK_S)
        for each in list(clients):
            each.send(b"t" * 1_000)


async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Client, "127.0.0.1", PORT, backlog=512)
    ticking = asyncio.create_task(tick()) if KIND == "ticks" else None
    async with server:
        await server.serve_forever()
    del ticking


asyncio.run(main())
