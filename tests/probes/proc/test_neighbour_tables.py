"""The tables of neighbours as netlink tells them, against iproute2 and the files of the host."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from harness.fleet import netns
from probes.proc.neighbour_tables import FAMILIES, parse_tables, read_table


@pytest.mark.parametrize("name", FAMILIES)
def test_a_table_is_what_iproute_says(name):
    words = ["ip", "-json", "-stats", "ntable", "show", "name", f"{name}_cache"]
    shown = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    (whole,) = [each for each in shown if "thresh3" in each]
    table = read_table(name)
    assert table is not None
    assert table.most_count == whole["thresh3"]
    assert table.fulls_total >= whole["table_fulls"]
    assert table.entries_count >= 0


@pytest.mark.privileged
@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_told_in_a_namespace_that_has_no_file_for_it(name):
    here = read_table(name)
    made = netns.create({})
    try:
        with netns.inside(made):
            assert not Path("/proc/sys/net/ipv4/neigh/default/gc_thresh3").exists()
            there = read_table(name)
    finally:
        os.close(made)
    assert here is not None
    assert there is not None
    assert there.most_count == here.most_count > 0


@pytest.mark.parametrize("answer", [b"", b"\0" * 23, b"\xff" * 400, bytes(range(256))])
def test_an_answer_that_makes_no_sense_has_no_tables(answer):
    assert parse_tables(answer) == {}
