"""What a command line says that nobody else should read.

Values of headers, cookies, subprotocols and queries, and messages. They are sent, and are recorded
nowhere: a run's report goes into tickets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

HIDDEN = "…"


def _header(text: str) -> str:
    name, colon, _ = text.partition(":")
    return f"{name}: {HIDDEN}" if colon else HIDDEN


def _cookie(text: str) -> str:
    name, equals, _ = text.partition("=")
    return f"{name}={HIDDEN}" if equals else HIDDEN


def without_query_values(target: str) -> str:
    """A URL or a request target with the names of its query, and none of the values.

    ``/chat?room=5&token=abc`` becomes ``/chat?room=…&token=…``.
    """
    path, mark, query = target.partition("?")
    query, hash_mark, fragment = query.partition("#")
    shown = "&".join(_cookie(part) if part else "" for part in query.split("&"))
    return f"{path}{mark}{shown}{hash_mark}{HIDDEN if fragment else ''}"


_OF_OPTION: dict[str, Callable[[str], str]] = {
    "--header": _header,
    "--cookie": _cookie,
    "--target": without_query_values,
    "--path": without_query_values,
    "--subprotocol": lambda _: HIDDEN,
    "--message": lambda _: HIDDEN,
}


def shown_value(option: str, value: str) -> str:
    """A value of an option as it may stand in a file.

    Args:
        option: Its name, with dashes or underscores, with or without those in front.
        value: As it was given.
    """
    hide = _OF_OPTION.get(f"--{option.lstrip('-').replace('_', '-')}")
    return value if hide is None else hide(value)


def without_secrets(words: Iterable[str]) -> list[str]:
    """A command line with the values of its headers, cookies and queries left out.

    Args:
        words: As they were given, ``--header X`` and ``--header=X`` alike.
    """
    shown: list[str] = []
    hide: Callable[[str], str] | None = None
    for word in words:
        option, equals, value = word.partition("=")
        if hide is not None:
            shown.append(hide(word))
            hide = None
        elif equals and option in _OF_OPTION:
            shown.append(f"{option}={_OF_OPTION[option](value)}")
        else:
            hide = _OF_OPTION.get(word)
            shown.append(word)
    return shown
