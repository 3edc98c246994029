"""Numbers that a server was started or configured with, so that a limit can be told by its name.

The words of its command line, and lines of the files that these name (scripts, configuration), as
far as they give a number between ``LEAST`` and ``MOST`` a name. What they mean is not interpreted
here: ``own-limit`` looks for the one whose value is the number of connections that were let in.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import NotRequired, TypedDict

from analysis.server.own_timeouts import TIME_WORDS
from probes.rights import stranger_file

LEAST, MOST = 8, 10_000_000
_FILE_BYTES = 256 << 10
_COMMAND_BYTES = 16 << 10
_FILES_MOST, _SETTINGS_MOST, _NAME_MOST = 8, 256, 60
_LINE_MOST, _TEXT_MOST = 400, 80
_ENDINGS = frozenset(
    (
        *(".js", ".cjs", ".mjs", ".ts", ".py", ".rb", ".php", ".pl", ".lua", ".exs", ".erl"),
        *(".sh", ".bash"),
        *(".conf", ".cfg", ".cnf", ".ini", ".yml", ".yaml", ".toml", ".json", ".xml"),
        *(".properties", ".service", ".socket"),
    )
)
_USUAL_FILES = {
    "nginx": ("/etc/nginx/nginx.conf",),
    "haproxy": ("/etc/haproxy/haproxy.cfg",),
    "envoy": ("/etc/envoy/envoy.yaml",),
    "apache2": ("/etc/apache2/apache2.conf", "/etc/apache2/mods-enabled/mpm_event.conf"),
    "httpd": ("/etc/httpd/conf/httpd.conf",),
}
_LINE = re.compile(
    r"""(?:(?P<name>[A-Za-z_][\w.\-]{0,59})["']?[\s:=(>]{1,8}["']?)?"""
    r"(?<![\w.])(?P<value>\d{1,3}(?:_\d{3})+|\d{1,8})(?![\w.])"
)
_SECRET = re.compile(r"pass|secret|token|key|pin(?!g)|auth|credential", re.IGNORECASE)
_TIME_WORDS = re.compile(
    TIME_WORDS + r"|duration|deadline|grace|linger",
    re.IGNORECASE,
)
_TIME = re.compile(
    r"""(?:(?P<name>[A-Za-z_][\w.\-]{0,59})["']?[\s:=(>]{1,8}["']?)?"""
    r"(?<![\w.])(?P<value>\d{1,7}(?:\.\d{1,3})?)(?P<unit>ms|sec|s|min|m|h|)(?![\w.])"
)
_UNITS_S = {"ms": 1e-3, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "": 1.0}
_FLAG = re.compile(r"--?[A-Za-z][\w\-]*")
_SPAN = re.compile(r"\d{1,8}:(?P<most>\d{1,8})")
"""From so many to so many, as puma has its threads."""
_PART = re.compile(r"[,:;](?P<name>[A-Za-z][\w\-]{0,59})=(?P<value>\d{1,8})(?=[,;]|$)")
"""One of several options in a word, as socat and mount have them."""
_OPTION = re.compile(r"--?(?P<name>[A-Za-z][\w\-]{0,59})=(?P<value>\d+)")


class Setting(TypedDict):
    """One number with a name, as it is in the manifest."""

    name: str
    value: int  # 0 of a time with a unit, which no count equals
    value_s: NotRequired[float]  # of a time with a unit
    file: str  # '' for the command line
    line: int
    text: str  # the line, '' for the command line


def settings_of_command(words: Sequence[str], folder: str) -> list[Setting]:
    """The same of a command that a run starts: what it names, before it becomes another program.

    Args:
        words: Of the command; one with spaces is taken for a script (``sh -c``).
        folder: Where it runs.
    """
    found = of_words(list(words))
    for word in words:
        if " " in word:
            found += of_text(word[:_COMMAND_BYTES], "")
    for path in files_named(list(words), folder):
        text = stranger_file.read_start(os.getpid(), path, _FILE_BYTES).decode("utf-8", "replace")
        found += of_text(text, path)
    return found[:_SETTINGS_MOST]


def settings_of(pid: int, parent_pid: int = 0) -> list[Setting]:
    """What a process was started with; empty when that may not be read.

    Args:
        pid: The process.
        parent_pid: Its parent, 0 for none: where that runs the same program, it says it for both.
    """
    is_child = parent_pid > 1 and program_of(parent_pid) == program_of(pid) != ""
    # a worker's title names no file: its parent's words do, or that one has the usual file
    found = _settings_of(pid, with_usual=not is_child)
    if is_child:
        found += [each for each in _settings_of(parent_pid) if each not in found]
    # Those with a name first: of a long program that is what there is room for.
    return sorted(found, key=lambda each: not each["name"])[:_SETTINGS_MOST]


def program_of(pid: int) -> str:
    """The file that a process runs, '' when that may not be seen."""
    try:
        return str(Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        return ""


def _settings_of(pid: int, *, with_usual: bool = True) -> list[Setting]:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()[:_COMMAND_BYTES]
        folder = str(Path(f"/proc/{pid}/cwd").readlink())
    except OSError:
        return []
    words = [word.decode("utf-8", "replace") for word in raw.split(b"\0") if word]
    if len(words) == 1:  # nginx and others write a title over their words
        words = words[0].split()
    found = of_words(words) + of_arguments(words)
    for path in files_named(words, folder, with_usual=with_usual):
        text = stranger_file.read_start(pid, path, _FILE_BYTES).decode("utf-8", "replace")
        found += of_text(text, path)
    return found


def of_words(words: list[str]) -> list[Setting]:
    """Options of a command line that have a number as value."""
    found: list[Setting] = []
    for word, after in zip_longest(words, words[1:], fillvalue=""):
        match = _OPTION.fullmatch(word)
        if match:
            found += _kept(match["name"], match["value"])
        elif _FLAG.fullmatch(word) and after.isdigit():
            found += _kept(word.lstrip("-"), after)
        elif _FLAG.fullmatch(word) and (span := _SPAN.fullmatch(after)):
            found += _kept(word.lstrip("-"), span["most"])
        for part in _PART.finditer(word) if not _SECRET.search(word) else ():
            found += _kept(part["name"], part["value"])
        if word.startswith("-") and not _SECRET.search(word):
            found += _times(word if "=" in word else f"{word} {after}")
    return found


def of_arguments(words: list[str]) -> list[Setting]:
    """Numbers of a command line that no option names."""
    found: list[Setting] = []
    for before, word in itertools.pairwise(words):
        if re.fullmatch(r"\d{1,8}", word) and not _FLAG.fullmatch(before):
            found += _kept("", word) if not _SECRET.search(before) else []
    return found


def of_text(text: str, file: str) -> list[Setting]:
    """Numbers in a file, with the name before them where there is one, and their line."""
    found: list[Setting] = []
    for number, line in enumerate(text.split("\n"), start=1):
        for part in _statements(line, file):
            if _SECRET.search(part):
                continue
            for match in _LINE.finditer(part[:_LINE_MOST]):
                name, text = match["name"] or "", _shortened(part.strip())
                found += _kept(name, match["value"], file, number, text)
            found += _times(part[:_LINE_MOST], file, number)
    return found


def _statements(line: str, file: str) -> list[str]:
    """Parts of a line that each set one thing: in a configuration several may stand in one."""
    if PurePosixPath(file).suffix != ".conf" or line.lstrip().startswith("#"):
        return [line]
    return [part for part in re.split(r"(?<=[;{}])", line) if part.strip()] or [line]


def _times(text: str, file: str = "", line: int = 0) -> list[Setting]:
    """Times in a line that have a unit, or are too short to be kept as a number."""
    if not _TIME_WORDS.search(text):
        return []
    found: list[Setting] = []
    for match in _TIME.finditer(text):
        value_s = float(match["value"]) * _UNITS_S[match["unit"]]
        if value_s > 0 and (match["unit"] or value_s < LEAST):
            found.append(
                Setting(
                    name=(match["name"] or "")[:_NAME_MOST],
                    value=0,
                    value_s=value_s,
                    file=file,
                    line=line,
                    text=_shortened(text.strip()),
                )
            )
    return found


def _shortened(text: str) -> str:
    return text if len(text) <= _TEXT_MOST else text[: _TEXT_MOST - 1] + "…"


def _kept(name: str, value: str, file: str = "", line: int = 0, text: str = "") -> list[Setting]:
    number = int(value.replace("_", "")[:12])
    if not LEAST <= number <= MOST or _SECRET.search(name):
        return []
    return [Setting(name=name[:_NAME_MOST], value=number, file=file, line=line, text=text)]


def files_named(words: list[str], folder: str, *, with_usual: bool = True) -> list[str]:
    """Absolute paths among the words that look like a script or a configuration.

    Where there is none, the usual ones of a well-known program.
    """
    found: list[str] = []
    prefix = folder
    for word, after in zip_longest(words, words[1:], fillvalue=""):
        if word == "-p" and after.startswith("/"):
            prefix = after  # nginx: what its paths begin at
    for word in words:
        text = word.partition("=")[2] if word.startswith("--") and "=" in word else word
        path = PurePosixPath(text)
        # gunicorn, uvicorn: module:application
        module = re.fullmatch(r"([A-Za-z_][\w.]*):[A-Za-z_]\w*(\(\))?", text)
        if module:
            path = PurePosixPath(module[1].replace(".", "/") + ".py")
        if path.suffix in _ENDINGS and "\0" not in text:
            found.append(str(path if path.is_absolute() else PurePosixPath(prefix) / path))
    program = PurePosixPath(words[0]).name.rstrip(":") if words else ""
    usual = [] if found or not with_usual else list(_USUAL_FILES.get(program, ()))
    return list(dict.fromkeys([*found, *usual]))[:_FILES_MOST]
