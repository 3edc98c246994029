"""Says where a rule is broken, a line each, and leaves with 1."""

from __future__ import annotations

import sys
from pathlib import Path

from lint.prose_logic import prose_logic
from lint.words import banned_words

RULES = (prose_logic, banned_words)
PACKAGES = ("analysis", "harness", "probes", "reports")


def main() -> int:
    """Looks at the packages that are shipped.

    Returns:
        Exit code: 0 when every rule holds.
    """
    root = Path(__file__).parent.parent
    files = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    found = [line for path in files for rule in RULES for line in rule(path)]
    sys.stdout.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
