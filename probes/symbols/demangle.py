"""Readable names of C++ and Rust functions.

``__cxa_demangle`` of the C++ runtime does the work. Where stacks are sampled it is there: the eBPF
library is written in C++. Without it, names stay as the compiler wrote them. Parameters are taken
off: in a flame graph the function is what matters, and its parameters would be most of the text.
Source: Itanium C++ ABI, 3.4.1 (demangler API); Rust RFC 2603 for its legacy names.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from functools import cache
from typing import Any

_LIBRARIES = ("libstdc++.so.6", "libc++abi.so.1")
_MAX_MANGLED_CHARACTERS = 2048  # its time and stack grow with nested templates
# Each substitution can double what stands before it: a hostile name of 250 characters would take
# minutes and gigabytes. Of Node's 85,821 functions none has more than 32.
_REFERENCE = re.compile(r"S[0-9A-Z]*_|T[0-9]*_")
_MAX_REFERENCES = 32
_CLONE_OR_VERSION = re.compile(r"[.@]")
_RUST_HASH = re.compile(r"::h[0-9a-f]{16}$")
_RUST_ESCAPES = (("$LT$", "<"), ("$GT$", ">"), ("$u20$", " "), ("$RF$", "&"), ("$u7b$", "{"))
_RUST_MORE = (("$u7d$", "}"), ("$C$", ","), ("$LP$", "("), ("$RP$", ")"), ("$BP$", "*"))
_OPENING, _CLOSING = "(<[{", ")>]}"


def demangle(name: str) -> str:
    """``v8::internal::Heap::CollectGarbage`` for ``_ZN2v88internal4Heap14CollectGarbageE…``.

    Args:
        name: A symbol. One that is not mangled comes back as it is, and so does one that the
            demangler does not know.
    """
    if not name.startswith("_Z") or len(name) > _MAX_MANGLED_CHARACTERS:
        return name
    # the compiler's clones (.part.0, .cold) and the linker's versions (@@GLIBCXX_3.4) go: to a
    # reader they are the same function
    mangled = _CLONE_OR_VERSION.split(name, maxsplit=1)[0]
    if len(_REFERENCE.findall(mangled)) > _MAX_REFERENCES:
        return name
    readable = _demangler()(mangled)
    if readable is None:
        return name
    if _RUST_HASH.search(readable):
        readable = _RUST_HASH.sub("", readable)
        for escape, text in (*_RUST_ESCAPES, *_RUST_MORE):
            readable = readable.replace(escape, text)
        return readable.replace("..", "::").removeprefix("_")
    return without_parameters(readable)


def without_parameters(name: str) -> str:
    """A demangled C++ name without parameters, qualifiers and return type.

    ``int f<char>(char) const`` gives ``f<char>``; ``A::operator()(int)`` gives ``A::operator()``;
    ``(anonymous namespace)::g(int)`` gives ``(anonymous namespace)::g``. A lambda keeps the
    parameters of the function that it is in: they are part of its name.
    """
    end = _parameters_at(name)
    name = name[:end]
    depth = start = 0
    for at, character in enumerate(name):
        if name.startswith("operator", at) and depth == 0:
            break  # what follows belongs to the operator's name, spaces and angle brackets too
        if character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth = max(0, depth - 1)
        elif character == " " and depth == 0:
            start = at + 1
    return name[start:] or name


def _parameters_at(name: str) -> int:
    """Where the last parameter list begins, the length of the name when there is none."""
    close = name.rfind(")")
    if close < 0 or "::" in name[close:]:
        return len(name)
    depth = 0
    for at in range(close, -1, -1):
        if name[at] == ")":
            depth += 1
        elif name[at] == "(":
            depth -= 1
            if depth == 0:
                is_operator = name[:at].endswith("operator")
                return len(name) if at == 0 or is_operator else at
    return len(name)


@cache
def _demangler() -> Callable[[str], str | None]:
    for library in _LIBRARIES:
        try:
            return _bound(ctypes.CDLL(library).__cxa_demangle)
        except (OSError, AttributeError):
            continue
    return lambda _: None


def _bound(function: Any) -> Callable[[str], str | None]:
    free = ctypes.CDLL(None).free
    free.argtypes, free.restype = [ctypes.c_void_p], None
    function.restype = ctypes.c_void_p
    function.argtypes = [
        *(ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p),
        ctypes.POINTER(ctypes.c_int),
    ]

    def demangled(mangled: str) -> str | None:
        found = function(mangled.encode(errors="replace"), None, None, ctypes.byref(ctypes.c_int()))
        if not found:
            return None
        try:
            return ctypes.string_at(found).decode(errors="replace")
        finally:
            free(found)

    return demangled
