"""Runs a command of the documentation at the size of a test; started under the command's name.

``smaller.py COMMAND ARGUMENT...`` with CONNSCOPE_BIN (the commands), CONNSCOPE_KEPT (a folder for
results), CONNSCOPE_WARM (the socket of ``warm.py``) and CONNSCOPE_AS_IT_IS (1: change nothing).
What is changed, and why:

| of                       | becomes                              | because                       |
|--------------------------|--------------------------------------|-------------------------------|
| --connections N          | at most 1,000                        | 120,000 need 5 s and 1 GB     |
| --hold S, or the 10 s    | 0                                    | the hold is only waiting      |
| probes, if none is named | --probes none                        | compiling takes a second      |
| its page                 | --no-report                          | those as they are draw theirs |
| --duration S, or none    | 2                                    | it ends with Ctrl-C otherwise |
| --metrics PORT           | --metrics 0                          | the port may be taken         |
| --repeats N              | left away: 1                         | one run shows that it works   |
| --vary NAME=V,V ...      | the first value of the first         | likewise                      |
| a scenario               | one row, smallest scale, no probes   | 22 rows take four minutes     |
| --resume DIR             | the matrix that the page made before | its name is another each time |

A command in KEPT_WHOLE keeps its probes and what is given for its hold: what follows on its page
reads its stacks. A run that was made before with the same arguments is copied, not made
again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

KEPT_WHOLE = {
    "--connections 300 --workers 2 --message-rate 60000": "3.5",
    "--connections 1000 --workers 3": "2.5",
}
"""Beginning of the arguments, and the hold that has the stacks that are asked for."""
RECORDERS = ("profile-run", "profile-matrix", "profile-attach")
"""Of these, 3 says that they did their work and that a limit was met."""
READERS = ("profile-report", "profile-compare")
"""Of these, ``warm.py`` has what they import; and of runs without probes and page."""
MOST_CONNECTIONS = 1_000
ATTACH_S = 2
ONE_ROW = {"the-2016-log": "r05-eaddrnotavail", "every-cause": "fd-limit-client"}
SCALES = {"the-2016-log": ["--scale", "1000"]}


def smaller(command: str, words: list[str]) -> list[str]:
    """The arguments as the test runs them."""
    if command == "profile-matrix":
        return _smaller_matrix(words)
    if command == "profile-attach":
        words = [*_without(words, "--duration"), "--duration", str(ATTACH_S)]
        return _without_page(words)
    if command != "profile-run":
        return words
    words = _with(words, "--metrics", lambda _: "0")
    if "--plan" in words:
        return words
    for start, hold_s in KEPT_WHOLE.items():
        if " ".join(words).startswith(start):
            return _without_page(_with(words, "--hold", lambda _, hold_s=hold_s: hold_s))
    return _without_page(_smaller_run(words))


def _without_page(words: list[str]) -> list[str]:
    return words if "--no-report" in words else [*words, "--no-report"]


def _smaller_run(words: list[str]) -> list[str]:
    words = _with(words, "--connections", lambda n: str(min(int(n), MOST_CONNECTIONS)))
    words = _with(words, "--hold", lambda _: "0")
    words += [] if "--hold" in words else ["--hold", "0"]
    return words + ([] if "--probes" in words else ["--probes", "none"])


def _smaller_matrix(words: list[str]) -> list[str]:
    at = words.index("--") if "--" in words else len(words)
    ours, of_run = words[:at], words[at + 1 :]
    ours = _without(ours, "--repeats")
    if "--vary" in ours:
        first = ours[ours.index("--vary") + 1].partition(",")[0]
        while "--vary" in ours:
            ours = _without(ours, "--vary")
        ours += ["--vary", first]
    ours = _with(ours, "--resume", lambda _: str(max(Path("runs").glob("*-matrix-*"))))
    if ours and ours[0] in ONE_ROW and "--list" not in ours:
        ours = _without(_without(ours, "--only"), "--scale")
        ours += ["--only", ONE_ROW[ours[0]], *SCALES.get(ours[0], [])]
        of_run = of_run or ["--hold", "0", "--probes", "none"]
    if not {"--list", "--resume", "--no-report"} & set(ours):
        ours.append("--no-report")
    return ours + (["--", *_smaller_run(of_run)] if of_run else [])


def _with(words: list[str], option: str, change: object) -> list[str]:
    assert callable(change)
    pairs = zip(["", *words], words, strict=False)
    return [change(word) if before == option else word for before, word in pairs]


def _without(words: list[str], option: str) -> list[str]:
    if option not in words:
        return words
    at = words.index(option)
    return words[:at] + words[at + 2 :]


def run(command: str, words: list[str]) -> int:
    """Runs it, or copies what the same arguments made before."""
    program = [os.environ["CONNSCOPE_BIN"] + "/" + command, *words]
    if command in READERS:
        return _run_warm(command, words)
    records = command in ("profile-run", "profile-matrix")
    if not records or {"--plan", "--list", "--server-pid", "--resume"} & set(words):
        return subprocess.run(program, check=False).returncode
    key = hashlib.sha256(repr(program).encode()).hexdigest()[:16]
    kept = Path(os.environ["CONNSCOPE_KEPT"], key)
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another page may be making the same
        if not kept.exists():
            return _run_and_keep(command, words, kept)
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    for made in (kept / "runs").iterdir():
        shutil.copytree(made, runs / made.name, dirs_exist_ok=True)
    if latest := (kept / "latest").read_text():
        (runs / "latest").unlink(missing_ok=True)
        (runs / "latest").symlink_to(latest)
    sys.stdout.write((kept / "stdout").read_text())
    return int((kept / "code").read_text())


def _run_warm(command: str, words: list[str], stdout_fd: int = 1) -> int:
    """Has a fork of ``warm.py`` run it, with the standard streams and folder of this process."""
    request = json.dumps([command, str(Path.cwd()), *words]).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(os.environ["CONNSCOPE_WARM"])
        socket.send_fds(server, [request], (0, stdout_fd, 2))
        code = server.recv(16)
    return int(code) if code else 1  # it ended with a traceback


def _run_and_keep(command: str, words: list[str], kept: Path) -> int:
    before = {path.name for path in Path("runs").glob("*")}
    with kept.with_suffix(".out").open("w+") as shown:
        if command == "profile-run" and {"none", "--no-report"} <= set(words):
            code = _run_warm(command, words, shown.fileno())
        else:
            program = [os.environ["CONNSCOPE_BIN"] + "/" + command, *words]
            code = subprocess.run(program, check=False, stdout=shown).returncode
        shown.seek(0)
        said = shown.read()
    sys.stdout.write(said)
    if code in (0, 3):
        for path in Path("runs").glob("*"):
            if path.name not in before and not path.is_symlink():
                shutil.copytree(path, kept / "runs" / path.name)
        latest = Path("runs/latest")
        (kept / "latest").write_text(latest.resolve().name if command == "profile-run" else "")
        (kept / "stdout").write_text(said)
        (kept / "code").write_text(str(code))
    return code


def main() -> int:
    """Entry point."""
    command, *words = sys.argv[1:]
    words = words if os.environ.get("CONNSCOPE_AS_IT_IS") else smaller(command, words)
    code = run(command, words)
    return 0 if code == 3 and command in RECORDERS else code


if __name__ == "__main__":
    sys.exit(main())
