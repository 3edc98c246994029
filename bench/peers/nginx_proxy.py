"""nginx as a WebSocket proxy in front of ``websockets``: PORT NGINX_WORKERS BACKEND_WORKERS.

The servers behind it listen on PORT + 1. Started by root, nginx gives its workers to ``nobody``, as
the distribution gives them to ``www-data``.
"""

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_START_S = 20.0

_CONFIGURATION = """\
{user}
daemon off;
master_process on;
worker_processes {workers};
worker_rlimit_nofile {nofile};
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections {connections}; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} reuseport;
    location / {{
      proxy_pass http://127.0.0.1:{behind};
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection upgrade;
      proxy_read_timeout 1h;
      proxy_buffer_size 4k;
      proxy_buffers 4 4k;
      proxy_busy_buffers_size 8k;
    }}
  }}
}}
"""


def main(argv: list[str]) -> int:
    """Starts what is behind, waits until it listens, starts nginx, and ends with SIGTERM."""
    port, workers, backend_workers = map(int, argv)
    folder = tempfile.mkdtemp(prefix="connscope-nginx-")
    children: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def end(number: int, _frame: object) -> None:
        asked.append(number)
        for child in children:
            child.terminate()

    signal.signal(signal.SIGTERM, end)
    try:
        server = [sys.executable, str(_HERE / "websockets_server.py"), str(port + 1)]
        several = [sys.executable, str(_HERE / "several.py"), str(backend_workers), *server]
        children.append(subprocess.Popen(several))
        _wait_until_listening(port + 1)
        configuration = _write_configuration(folder, port, workers)
        arguments = ["-p", folder, "-e", "stderr", "-c", configuration]
        children.append(subprocess.Popen(["nginx", *arguments]))
        statuses = [child.wait() for child in children]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if asked else max(map(abs, statuses))


def _write_configuration(folder: str, port: int, workers: int) -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    Path(folder).chmod(0o755)  # nginx's workers are another user
    path = Path(folder, "nginx.conf")
    text = _CONFIGURATION.format(
        user="user nobody nogroup;" if os.geteuid() == 0 else "",
        workers=workers,
        nofile=soft,
        connections=max(512, 2 * soft),  # so that the descriptors end first
        folder=folder,
        port=port,
        behind=port + 1,
    )
    path.write_text(text, encoding="utf-8")
    return str(path)


def _wait_until_listening(port: int) -> None:
    end_s = time.monotonic() + _START_S
    while time.monotonic() < end_s:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
