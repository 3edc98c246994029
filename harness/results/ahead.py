"""Imports the analysis while the last probes and the fleet end, so that the report comes sooner.

pandas, and matplotlib for a page, take half a second of one core. They are not wanted while a run
is watched; once the probes have been asked to stop, the supervisor only waits, for py-spy above
all. For root another process imports them (``harness.results.conclusion``).
"""

from __future__ import annotations

import threading

from harness.results import conclusion

_LAST_SAMPLES_S = 0.1
"""The probes take their last samples meanwhile; they would see the import as CPU time of others."""


class AnalysisAhead:
    """The import in a thread of its own; used once.

    Args:
        with_page: A page is wanted as well.
        is_wanted: This process understands the recording when it is over.
    """

    def __init__(self, *, with_page: bool = True, is_wanted: bool = True) -> None:
        self._with_page = with_page
        self._is_wanted = is_wanted
        self._timer = threading.Timer(_LAST_SAMPLES_S, _import_analysis, (with_page,))
        self._timer.daemon = True

    def begin(self) -> None:
        """Called when the probes have been asked to stop."""
        if not self._is_wanted:
            return
        if conclusion.is_apart():
            conclusion.begin(with_page=self._with_page, after_s=_LAST_SAMPLES_S)
        else:
            self._timer.start()

    def wait(self) -> None:
        """Waits for its end: two threads should not import the same packages."""
        self._timer.cancel()  # for one that has not begun
        if self._timer.ident is not None:
            self._timer.join()


def _import_analysis(with_page: bool) -> None:
    try:
        import harness.results.pipeline  # noqa: F401 - for whoever imports it next

        if with_page:
            import reports.page.page  # noqa: F401 - likewise
    except Exception:  # noqa: BLE001, S110 - whoever needs it imports it again and says what is wrong
        pass
