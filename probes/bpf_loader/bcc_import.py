"""Imports the distribution's ``bcc``, and nothing else of the distribution's packages.

The eBPF bindings come with the distribution (``python3-bpfcc``) and cannot be installed by pip:
``bcc`` on PyPI is an unrelated package about lattices. The environment of this tool does not see
system site packages, so the one package is loaded from its directory; ``sys.path`` stays as it is.
Only the process that compiles (``probes/bpf_loader/compile.py``) imports it: bcc brings LLVM with
it, 74 MB of memory before the first line of C.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from probes.bpf_loader.distribution import bindings
from probes.contract.errors import ProbeUnavailableError

# Debian and Ubuntu; packages built from source; Fedora and openSUSE
_PLACES = (
    "usr/lib/python3/dist-packages",
    "usr/local/lib/python3*/dist-packages",
    "usr/lib/python3*/dist-packages",
    "usr/lib/python3*/site-packages",
)


def package_directories() -> list[Path]:
    """Directories of the distribution's Python packages that exist here, in order of preference."""
    return [hit for place in _PLACES for hit in sorted(Path("/").glob(place))]


def find_bcc(directories: Iterable[Path]) -> Path:
    """The directory of the eBPF bindings.

    Args:
        directories: Where to look, first found wins.

    Raises:
        ProbeUnavailableError: Not there, or only the unrelated package of that name.
    """
    unrelated: Path | None = None
    for directory in directories:
        package = directory / "bcc"
        if not (package / "__init__.py").is_file():
            continue
        if (package / "libbcc.py").is_file():
            return package
        unrelated = package
    if unrelated is not None:
        raise ProbeUnavailableError(
            f"{unrelated} is not the eBPF bindings but PyPI's unrelated package bcc",
            fix=bindings().install,
        )
    raise ProbeUnavailableError(
        "the eBPF bindings (Python package bcc of the distribution) are not installed",
        fix=bindings().install,
    )


def import_bcc() -> ModuleType:
    """Imports and returns the package ``bcc``.

    Raises:
        ProbeUnavailableError: Not installed, or its library does not load.
    """
    loaded = sys.modules.get("bcc")
    if loaded is not None and "bcc.libbcc" in sys.modules:
        return loaded
    package = find_bcc(package_directories())
    spec = importlib.util.spec_from_file_location(
        "bcc", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bcc"] = module
    try:
        spec.loader.exec_module(module)
    except (ImportError, OSError, SyntaxError) as error:
        for name in [n for n in sys.modules if n == "bcc" or n.startswith("bcc.")]:
            del sys.modules[name]
        raise ProbeUnavailableError(
            f"the eBPF bindings in {package} do not load: {error}",
            fix=bindings().again,
        ) from error
    return module
