"""limit_server.py KIND COUNT PORT: serves COUNT WebSockets; what becomes of the others, KIND says.

closes    accepts the others and closes them at once
stops     accepts COUNT and nobody more, with a free event loop
silent    accepts the others and reads nothing of them
refuses   answers the others with 503
threads   has COUNT threads, each of which is held by one connection; accepts on
asks      has COUNT threads that ask another address, which never answers, before they upgrade
once      serves all, and accepts one for each event of a listener with EPOLLET: others stay
one       has one thread, and reads from the first client, which says nothing
healthy   serves all; a thread of its own waits for another address all the time, another for a lock
"""

import base64
import hashlib
import queue
import select
import selectors
import socket
import sys
import threading

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
KIND, COUNT, PORT = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
LISTENER = socket.create_server(("127.0.0.1", PORT), backlog=4096)
MUTE = socket.create_server(("127.0.0.1", 0), backlog=4096)  # nobody accepts there


def answer(connection, head):
    key = next(
        line.partition(b":")[2].strip()
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"sec-websocket-key:")
    )
    token = base64.b64encode(hashlib.sha1(key + GUID).digest())
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + token + b"\r\n\r\n"
    )


def serve_in_thread(jobs):
    while True:
        connection = jobs.get()
        head = connection.recv(4096)
        if KIND == "asks":
            with socket.create_connection(MUTE.getsockname()) as other:
                other.recv(1)
        if head:
            answer(connection, head)
            while connection.recv(4096):
                pass
        connection.close()


def with_threads():
    jobs = queue.SimpleQueue()
    for _ in range(COUNT):
        threading.Thread(target=serve_in_thread, args=(jobs,), daemon=True).start()
    poll = selectors.DefaultSelector()
    poll.register(LISTENER, selectors.EVENT_READ)
    while poll.select():
        jobs.put(LISTENER.accept()[0])


def with_one_thread():
    while True:
        connection = LISTENER.accept()[0]
        answer(connection, connection.recv(4096))
        while connection.recv(4096):
            pass
        connection.close()


def with_a_loop():
    poll = selectors.DefaultSelector()
    poll.register(LISTENER, selectors.EVENT_READ)
    kept = []
    while True:
        for key, _ in poll.select():
            connection = key.fileobj
            if connection is not LISTENER:
                head = connection.recv(4096)
                if not head:
                    poll.unregister(connection)
                    connection.close()
                elif b"Sec-WebSocket-Key" in head and connection in kept[COUNT:]:
                    connection.sendall(
                        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n"
                        b"Connection: close\r\n\r\n"
                    )
                elif b"Sec-WebSocket-Key" in head:
                    answer(connection, head)
                continue
            connection = LISTENER.accept()[0]
            if len(kept) >= COUNT and KIND == "closes":
                connection.close()
                continue
            kept.append(connection)
            if len(kept) <= COUNT or KIND == "refuses":
                poll.register(connection, selectors.EVENT_READ)
            if len(kept) == COUNT and KIND == "stops":
                poll.unregister(LISTENER)


def told_once():
    poll = select.epoll()
    poll.register(LISTENER, select.EPOLLIN | select.EPOLLET)
    kept = {}
    while True:
        for fd, _ in poll.poll():
            if fd == LISTENER.fileno():
                connection = LISTENER.accept()[0]
                kept[connection.fileno()] = connection
                poll.register(connection, select.EPOLLIN)
            elif head := kept[fd].recv(4096):
                answer(kept[fd], head)
            else:
                kept.pop(fd).close()


def stay_away():
    with socket.create_connection(MUTE.getsockname()) as other:
        other.recv(1)


if KIND == "healthy":
    COUNT = 1 << 30
    held = threading.Lock()
    held.acquire()
    for target in (stay_away, *([held.acquire] * 4)):
        threading.Thread(target=target, daemon=True).start()
LOOPS = {
    "threads": with_threads,
    "asks": with_threads,
    "one": with_one_thread,
    "once": told_once,
}
LOOPS.get(KIND, with_a_loop)()
