"""Rules of this project that no linter has: ``python -m lint``, a part of ``make lint``."""
