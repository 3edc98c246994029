"""``python -m documentation [man] [reference]``: writes the generated pages; both by default."""

from __future__ import annotations

import sys
from pathlib import Path

from documentation.pages import KINDS

ROOT = Path(__file__).resolve().parent.parent


def main(kinds: list[str]) -> int:
    """Writes the pages of these kinds and says which of them changed."""
    for kind in kinds or list(KINDS):
        for name, text in KINDS[kind]().items():
            path = ROOT / name
            if path.exists() and path.read_text() == text:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
