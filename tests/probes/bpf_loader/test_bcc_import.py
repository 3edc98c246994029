"""Finding the distribution's bcc, and not PyPI's package of the same name."""

import subprocess
import sys

import pytest

from probes.bpf_loader.bcc_import import find_bcc
from probes.contract.errors import ProbeUnavailableError


def package(directory, *files):
    (directory / "bcc").mkdir(parents=True)
    for name in ("__init__.py", *files):
        (directory / "bcc" / name).write_text("")
    return directory


def test_the_lattice_package_is_passed_over(tmp_path):
    lattice = package(tmp_path / "a", "lattice.py")
    bindings = package(tmp_path / "b", "libbcc.py")
    assert find_bcc([tmp_path / "none", lattice, bindings]) == bindings / "bcc"


def test_only_the_lattice_package_is_said_so(tmp_path):
    with pytest.raises(ProbeUnavailableError, match="unrelated") as caught:
        find_bcc([package(tmp_path / "a", "lattice.py")])
    assert caught.value.fix == "apt-get install python3-bpfcc"


def test_nothing_installed_names_the_package(tmp_path):
    with pytest.raises(ProbeUnavailableError, match="not installed") as caught:
        find_bcc([tmp_path])
    assert caught.value.fix == "apt-get install python3-bpfcc"


@pytest.mark.privileged
def test_the_import_exposes_nothing_else_of_the_system():
    code = (
        "import sys; before = list(sys.path)\n"
        "from probes.bpf_loader.bcc_import import import_bcc\n"
        "bcc = import_bcc(); assert import_bcc() is bcc\n"
        "assert hasattr(bcc, 'BPF') and hasattr(bcc.libbcc, 'lib')\n"
        "assert sys.path == before\n"
        "assert not [p for p in sys.path if 'dist-packages' in p], sys.path\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
