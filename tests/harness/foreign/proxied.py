"""proxied.py PORT PROXY BEHIND [COMMAND...]: a proxy, and what is behind it.

PROXY is nginx or haproxy. BEHIND says what becomes of what it hands on:

nobody    nobody listens where the proxy looks for its application
queue     an application on a Unix socket that takes 20 connections a second, with a queue of 8
command   COMMAND serves at the port that stands for {behind} in it
"""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from upgrade import answer

START_S = 30.0
TURN_S = 0.05
PR_SET_PDEATHSIG = 1

NGINX = """\
{user}
daemon off; pid {folder}/pid; error_log stderr error; worker_rlimit_nofile 4096;
events {{ worker_connections 4096; }}
http {{ access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b;
fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
upstream application {{ server {address} max_fails=0; }}
server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://application;
proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_read_timeout 1h;
proxy_set_header Connection upgrade; }} }} }}
"""
HAPROXY = """\
global
  maxconn 8000
defaults
  mode http
  timeout connect 2s
  timeout client 1h
  timeout server 1h
  retries 0
frontend clients
  bind 127.0.0.1:{port}
  default_backend application
backend application
  server one {address}
"""


def dies_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def serve_slowly(path):
    """Takes one connection each turn, and keeps it."""
    kept = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        os.chmod(path, 0o666)
        listener.listen(8)
        while True:
            time.sleep(TURN_S)
            connection, _ = listener.accept()
            if head := connection.recv(4096):
                connection.sendall(answer(head))
            kept.append(connection)


def wait_for(is_there):
    end_s = time.monotonic() + START_S
    while not is_there() and time.monotonic() < end_s:
        time.sleep(0.02)


def listens(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def start_behind(kind, command, folder, port):
    """What is behind; its address as the proxies write it, and its process."""
    behind = port + 1
    address = f"127.0.0.1:{behind}"
    if kind == "nobody":
        return address, None
    if kind == "queue":
        path = f"{folder}/app.sock"
        words = [sys.executable, __file__, "--behind", path]
        child = subprocess.Popen(words, preexec_fn=dies_with_parent)  # noqa: PLW1509 - one thread
        wait_for(lambda: os.path.exists(path))
        return f"unix:{path}", child
    words = [word.replace("{behind}", str(behind)) for word in command]
    child = subprocess.Popen(words, preexec_fn=dies_with_parent)  # noqa: PLW1509 - one thread
    wait_for(lambda: listens(behind))
    return address, child


def start_proxy(name, folder, port, address):
    user = "user nobody nogroup;" if os.geteuid() == 0 else ""
    template = NGINX if name == "nginx" else HAPROXY
    if name != "nginx":
        address = address.replace("unix:", "unix@")
    path = Path(folder, "proxy.conf")
    path.write_text(template.format(folder=folder, port=port, address=address, user=user))
    words = {
        "nginx": ["nginx", "-p", folder, "-e", "stderr", "-c", str(path)],
        "haproxy": ["haproxy", "-db", "-f", str(path)],
    }[name]
    return subprocess.Popen(words, preexec_fn=dies_with_parent)  # noqa: PLW1509 - one thread


def main(port, proxy, kind, *command):
    folder = tempfile.mkdtemp(prefix="connscope-proxied-")
    os.chmod(folder, 0o755)
    children = []
    asked = []

    def end(number, _frame):
        asked.append(number)
        for child in children:
            child.terminate()

    signal.signal(signal.SIGTERM, end)
    try:
        address, behind = start_behind(kind, command, folder, int(port))
        children += [behind] if behind else []
        children.append(start_proxy(proxy, folder, int(port), address))
        statuses = [child.wait() for child in reversed(children)]
    finally:
        for child in children:
            child.kill()
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if asked else max(map(abs, statuses))


if __name__ == "__main__":
    if sys.argv[1] == "--behind":
        serve_slowly(sys.argv[2])
    sys.exit(main(*sys.argv[1:]))
