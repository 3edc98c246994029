"""Boots a kernel under emulation, over this machine's root file system, and runs a job in it.

QEMU without KVM: any machine can do it, about twenty times slower than by itself. The root file
system is shared read-only by virtiofs, so Python, bcc and the project are there as they are; what
is written goes to memory. Nothing of the guest is left.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.kernels.catalogue import Kernel
from tests.kernels.fetch import FOLDER, CannotFetchError, kernel_image, modules_folder
from tests.kernels.initrd import BUSYBOX, make_initrd, needed_modules

PROJECT = Path(__file__).resolve().parents[2]
MEMORY = "2560M"

_QEMU = "qemu-system-x86_64"
_VIRTIOFSD = (  # with its words: of QEMU itself (until 8.0), the later one in Rust
    ("/usr/lib/qemu/virtiofsd", ("-o", "source=/", "-o", "cache=always", "-o", "sandbox=chroot")),
    ("/usr/libexec/virtiofsd", ("--shared-dir=/", "--cache=always", "--sandbox=chroot")),
)
# QEMU 7.2 emulates AVX wrongly (numpy's sort gives other results); LA57 halves its speed.
_CPU = "max,la57=off,avx=off,avx2=off,f16c=off,fma=off"
_CPUS_COUNT = 2
# Without no_timer_check a crowded host makes the timer late, and the kernel panics.
_WORDS = "console=ttyS0 quiet panic=-1 loglevel=3 mitigations=off nokaslr no_timer_check"


class GuestFailedError(Exception):
    """The guest did not come up or did not end; with the end of its console.

    Attributes:
        output: What the job printed until then.
    """

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


def missing_programs() -> list[str]:
    """Packages of Debian that are not here and without which no guest boots."""
    wanted = {
        "qemu-system-x86": shutil.which(_QEMU),
        "qemu-system-common or virtiofsd": _virtiofsd(),
        "busybox-static": BUSYBOX.exists() or None,
        "kmod": shutil.which("depmod", path="/usr/sbin:/sbin:/usr/bin"),
    }
    return [name for name, found in wanted.items() if found is None]


def run(
    kernel: Kernel, job: Path, names: Sequence[str], *, timeout_s: float, echo: bool = False
) -> str:
    """Boots a kernel and returns what the job printed.

    Args:
        kernel: Fetched when it is not there.
        job: A Python file of the project, run as root by the project's interpreter.
        names: Its arguments: words without blanks and commas.
        timeout_s: For all of it.
        echo: Also show its lines as they come.

    Raises:
        CannotFetchError: There is no such kernel here.
        GuestFailedError: It took longer, or the job did not end.
    """
    if missing := missing_programs():
        raise CannotFetchError(f"to boot kernels: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        raise CannotFetchError("sharing the root file system with a guest needs root")
    image = kernel_image(kernel)
    with tempfile.TemporaryDirectory(prefix="connscope-guest-") as name, ExitStack() as stack:
        folder = Path(name)
        socket_path = folder / "fs.sock"
        stack.enter_context(_sharing(socket_path))
        output, console = folder / "output", folder / "console"
        output.touch()
        command = [
            *(_QEMU, "-machine", "q35", "-accel", "tcg,thread=multi,tb-size=256"),
            *("-cpu", _CPU, "-smp", str(_CPUS_COUNT), "-m", MEMORY),
            *("-object", f"memory-backend-memfd,id=mem,size={MEMORY},share=on"),
            *("-numa", "node,memdev=mem", "-nographic", "-no-reboot", "-nodefaults"),
            *("-chardev", f"socket,id=fs,path={socket_path}"),
            *("-device", "vhost-user-fs-pci,chardev=fs,tag=rootfs"),
            *("-serial", f"file:{console}", "-serial", f"file:{output}"),
            *("-kernel", str(image), *_boot_words(kernel, job, names, folder)),
        ]
        with (folder / "qemu").open("w") as log, _process(command, log) as qemu:
            _follow(qemu, output, time.monotonic() + timeout_s, echo=echo)
        text = output.read_text(errors="replace")
        if "job ended with 0 " not in text:
            tails = [
                path.read_text(errors="replace")[-1500:] for path in (folder / "qemu", console)
            ]
            raise GuestFailedError("\n".join([text[-3000:], *tails]), text)
        return text


def _boot_words(kernel: Kernel, job: Path, names: Sequence[str], folder: Path) -> tuple[str, ...]:
    init = Path(__file__).with_name("init")
    told = {"project": PROJECT, "kernels": FOLDER, "key": kernel.key, "job": job}
    words = [
        _WORDS,
        *(f"{name}={value}" for name, value in told.items()),
        f"names={','.join(names)}",
    ]
    modules = modules_folder(kernel)
    if needed_modules(modules):
        initrd = folder / "initrd"
        initrd.write_bytes(make_initrd(modules, str(init)))
        return "-initrd", str(initrd), "-append", " ".join(words)
    words.append(f"rootfstype=virtiofs root=rootfs ro init={init}")
    return "-append", " ".join(words)


def _virtiofsd() -> tuple[str, Sequence[str]] | None:
    return next(((path, words) for path, words in _VIRTIOFSD if Path(path).exists()), None)


@contextmanager
def _sharing(socket_path: Path) -> Iterator[None]:
    found = _virtiofsd()
    assert found is not None
    program, words = found
    command = [program, f"--socket-path={socket_path}", *words]
    with socket_path.with_suffix(".log").open("w") as log, _process(command, log) as sharing:
        deadline_s = time.monotonic() + 20
        while not socket_path.exists():
            if sharing.poll() is not None or time.monotonic() > deadline_s:
                raise GuestFailedError(f"{program} did not start: {Path(log.name).read_text()}")
            time.sleep(0.05)
        yield


@contextmanager
def _process(command: Sequence[str], log: object) -> Iterator[subprocess.Popen[bytes]]:
    """A child that is gone with the block, with all that it started, or with this process."""
    child = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _follow(qemu: subprocess.Popen[bytes], output: Path, end_s: float, *, echo: bool) -> None:
    """Until the guest is off, or its job has ended and it does not go off."""
    shown, ended_s = 0, 0.0
    while qemu.poll() is None and time.monotonic() < end_s:
        text = output.read_text(errors="replace")
        if echo and (end := text.rfind("\n") + 1) > shown:
            print(text[shown:end], end="", flush=True)
            shown = end
        if "\njob ended with " in text:
            ended_s = ended_s or time.monotonic()
            if time.monotonic() > ended_s + 5:
                return
        time.sleep(0.2)
