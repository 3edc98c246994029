"""The commands that a distribution has for the eBPF bindings."""

from __future__ import annotations

import pytest

from probes.bpf_loader.distribution import bindings

RELEASES = {
    'NAME="Debian GNU/Linux"\nID=debian\n': "apt-get install python3-bpfcc",
    "ID=ubuntu\nID_LIKE=debian\n": "apt-get install python3-bpfcc",
    "ID=linuxmint\nID_LIKE='ubuntu debian'\n": "apt-get install python3-bpfcc",
    'ID=fedora\nPLATFORM_ID="platform:f43"\n': "dnf install python3-bcc",
    'ID="rocky"\nID_LIKE="rhel centos fedora"\n': "dnf install python3-bcc",
    'ID="amzn"\nID_LIKE="fedora"\n': "dnf install python3-bcc",
    'ID="opensuse-leap"\nID_LIKE="suse opensuse"\n': "zypper install python3-bcc",
    "ID=arch\n": "pacman -S python-bcc",
    "ID=alpine\nVERSION_ID=3.22.1\n": "apk add py3-bcc",
    "ID=nobody-knows\n": "apt-get install python3-bpfcc",
    "no file of that kind\n\x00": "apt-get install python3-bpfcc",
}


@pytest.mark.parametrize("text", RELEASES)
def test_the_command_is_that_of_the_distribution(tmp_path, text):
    path = tmp_path / "os-release"
    path.write_text(text)
    assert bindings([tmp_path / "missing", path]).install == RELEASES[text]


def test_without_a_file_it_is_debians(tmp_path):
    assert bindings([tmp_path]).install == "apt-get install python3-bpfcc"
