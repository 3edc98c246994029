"""What is computed once for each run, though many findings ask for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

_Of = TypeVar("_Of")
_Rest = ParamSpec("_Rest")
_Value = TypeVar("_Value")


def remembered(
    function: Callable[Concatenate[_Of, _Rest], _Value],
) -> Callable[Concatenate[_Of, _Rest], _Value]:
    """The function, which is called once for a run and each of its other arguments.

    For what depends on nothing but a ``RunView`` or ``Signs``, the first argument, which keeps the
    value as long as it lives. Whoever gets a value must not change it: others have it as well.

    Args:
        function: Its other arguments are hashable.
    """

    @wraps(function)
    def once(of: _Of, /, *others: _Rest.args, **named: _Rest.kwargs) -> _Value:
        values: dict[Any, Any] = vars(of).setdefault(_NAME, {})
        key = (function, others, tuple(sorted(named.items()))) if named else (function, others)
        try:
            found: _Value = values[key]
        except KeyError:
            found = values[key] = function(of, *others, **named)
        return found

    return once


_NAME = "_remembered"
