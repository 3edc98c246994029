"""What the set-up says where it cannot install packages, in a mount namespace."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.privileged

PROJECT = Path(__file__).resolve().parents[2]
FEDORA = 'NAME="Fedora Linux"\nID=fedora\n'
ALPINE = 'NAME="Alpine Linux"\nID=alpine\n'
DEBIAN = "ID=debian\n"
BINDINGS = "/usr/lib/python3/dist-packages/bcc"


@pytest.fixture
def set_up(tmp_path):
    """Runs a copy of .ci/setup where there is neither apt-get nor bcc nor a Python that will do."""
    project = tmp_path / "project"
    (project / ".ci").mkdir(parents=True)
    for name in (".ci/setup", "pyproject.toml", "requirements.lock"):
        (project / name).write_bytes((PROJECT / name).read_bytes())
    programs = tmp_path / "bin"
    programs.mkdir()
    for program in Path("/usr/bin").iterdir():
        if not program.name.startswith(("apt", "python", "uv")):
            (programs / program.name).symlink_to(program)

    def run(release):
        (tmp_path / "release").write_text(release)
        (tmp_path / "old").write_text("#!/bin/sh\nexit 1\n")  # what 3.10 answers
        (tmp_path / "old").chmod(0o755)
        lines = [
            f"mount --bind {shlex.quote(str(tmp_path / 'release'))} /etc/os-release",
            f"[ ! -d {BINDINGS} ] || mount -t tmpfs tmpfs {BINDINGS}",
            "for each in /usr/bin/python3.1?; do "
            f"mount --bind {shlex.quote(str(tmp_path / 'old'))} $each; done",
            f"export PATH={shlex.quote(str(programs))}",
            f"exec bash {shlex.quote(str(project / '.ci/setup'))} run",
        ]
        command = ["unshare", "--mount", "sh", "-e", "-c", "\n".join(lines)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    return run


@pytest.mark.parametrize(
    ("release", "bindings", "python"),
    [
        (FEDORA, "sudo dnf install python3-bcc", "sudo dnf install python3)"),
        (ALPINE, "apk add py3-bcc", "apk add python3)"),
        (DEBIAN, "sudo apt-get install python3-bpfcc", "sudo apt-get install python3 python3-venv"),
    ],
)
def test_what_is_missing_is_a_line_with_the_command_of_that_distribution(
    set_up, release, bindings, python
):
    done = set_up(release)
    assert done.returncode == 4, done.stderr
    missing, refusal = done.stderr.splitlines()
    assert "no apt-get here, so these stay missing" in missing
    assert bindings in missing
    assert "no Python 3.11 or newer found" in refusal
    assert python in refusal


def test_make_without_bash_says_so(tmp_path):
    (tmp_path / "Makefile").write_bytes((PROJECT / "Makefile").read_bytes())
    folder = shlex.quote(str(tmp_path))
    lines = [  # a root with make and its libraries, and nothing else
        f"for each in lib lib64 usr/lib usr/lib64; do [ ! -d /$each ] || "
        f"{{ mkdir -p {folder}/$each && mount --bind /$each {folder}/$each; }}; done",
        f"mkdir {folder}/bin && cp /usr/bin/make {folder}/bin/",
        f"exec chroot {folder} /bin/make run",
    ]
    script = "\n".join(lines)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "bash is missing" in line
