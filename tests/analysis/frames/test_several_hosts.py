"""A built run of a server and two clients: one clock, one key, and who was lost."""

from __future__ import annotations

import shutil

import pytest

from analysis.document import document
from analysis.frames.run_frames import load
from analysis.frames.several_hosts import MOMENTS, SPANS
from analysis.summary import summarise
from harness.results.pipeline import results
from probes.contract import schema
from probes.contract.errors import RunDirError
from probes.contract.rundir import REPORT, RunDir, open_files
from probes.contract.several_hosts import PIDS_PER_HOST
from tests.analysis.conftest import ORIGIN_NS, RunBuilder

HOUR_NS = 3_600 * 10**9


class Later(RunBuilder):
    """A host whose clock is an hour ahead."""

    @staticmethod
    def ns(at_s):
        return RunBuilder.ns(at_s) + HOUR_NS


def entry(name, index, **values):
    blank = {"role": "client", "address": "192.0.2.1", "connections": 50, "clients": 1}
    clock = {"at_ns": ORIGIN_NS, "offset_ns": 0, "drift_ppm": 0.0, "bound_ns": 0}
    state = {"is_lost": False, "lost_ns": 0, "has_rows": True}
    return {"name": name, "index": index, "clock": clock, **blank, **state, **values}


def built(tmp_path, *, second_is_lost=False):
    whole = RunBuilder(tmp_path / "whole")
    whole.manifest["target_connections"] = 100
    whole.stages(1.0, 5.0)
    server = RunBuilder(tmp_path / "server")
    server.stages(1.0, 5.0)
    server.process("server", 0)
    server.host_cpu(10.0, from_s=0.0, until_s=4.0)
    first, second = Later(tmp_path / "a"), RunBuilder(tmp_path / "b")
    for client in (first, second):
        client.manifest["plan"] = {"port_range": [40_000, 40_999]}
        client.process("client", 0)
        client.connect(50)
        client.host_cpu(99.0, from_s=0.0, until_s=4.0)
    whole.manifest["hosts"] = [
        entry("s", 0, role="server", connections=0, clients=0),
        entry("a", 1, clock={"at_ns": ORIGIN_NS, "offset_ns": HOUR_NS, "bound_ns": 40_000}),
        entry("b", 2, is_lost=second_is_lost, has_rows=not second_is_lost, lost_ns=whole.ns(2.0)),
    ]
    run = whole.write()
    parts = {"s": server, "a": first} | ({} if second_is_lost else {"b": second})
    (run.path / "hosts").mkdir()
    for name, build in parts.items():
        shutil.move(build.write().path, run.path / "hosts" / name)
    return run


def test_all_hosts_are_on_one_clock_with_one_key(tmp_path):
    frames = load(built(tmp_path))
    connections = frames["connections"]
    assert connections.groupby("client").size().to_dict() == {0: 50, 1: 50}
    assert connections["connection"].is_unique
    assert connections["start_ns"].between(ORIGIN_NS, ORIGIN_NS + 10**9).all()
    assert (connections["closed_ns"] == 0).all()  # never stays never
    assert sorted(frames["processes"]["pid"]) == [800, PIDS_PER_HOST + 900, 2 * PIDS_PER_HOST + 900]
    assert sorted(frames["processes"]["worker"][frames["processes"]["role"] == "client"]) == [0, 1]


def test_what_is_of_a_host_is_never_mixed(tmp_path):
    frames = load(built(tmp_path))
    whole = len(frames["host_cpu"])
    part = frames.hosts[1]
    of_host = frames.of_host(part)
    assert len(of_host["host_cpu"]) == whole
    assert (
        of_host["host_cpu"]["user_ns_total"].max() > 5 * frames["host_cpu"]["user_ns_total"].max()
    )
    assert of_host["connections"]["client"].unique().tolist() == [0]
    assert of_host["processes"]["role"].tolist() == ["server", "client"]
    assert of_host.manifest["target_connections"] == 50
    assert of_host.manifest["plan"]["port_range"] == [40_000, 40_999]


def test_a_process_is_called_by_its_own_pid_and_its_host(tmp_path):
    summary = summarise(load(built(tmp_path)))
    told = document(summary)
    assert told["verdict"]["cause"] == "reached"
    subjects = [rung["subject"] for rung in told["ladder"]]
    assert "client 1 (pid 900 on b, client)" in subjects
    assert any(subject == "host a" for subject in subjects)


def test_a_lost_host_is_the_cause_and_is_named(tmp_path):
    told = document(summarise(load(built(tmp_path, second_is_lost=True))))
    assert told["verdict"]["cause"] == "host-lost"
    assert told["verdict"]["host"] == "b"
    finding = told["findings"][0]
    assert (finding["side"], finding["subject"]["host"]) == ("host", "b")
    assert finding["first_s"] == 2


def test_its_files_are_all_that_is_needed(tmp_path):
    run = built(tmp_path)
    held = RunDir(run.path, open_files(run.path))
    for name in ("manifest.json", "raw", "hosts"):
        path = run.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    made = dict(results(held))
    assert b"Which hosts took part?" in made[REPORT]


def test_a_name_that_leads_elsewhere_is_no_host(tmp_path):
    run = built(tmp_path)
    manifest = run.read_manifest()
    manifest["hosts"][1]["name"] = "../../a"
    run.write_manifest(manifest)
    with pytest.raises(RunDirError, match="names a host"):
        load(run)


def test_clocks_that_contradict_the_connections_are_said(tmp_path):
    def told(first_s):
        build = RunBuilder(tmp_path / str(first_s))
        build.process("server", 0)
        build.add("connection_fates", at_s=1.0, pid=800, fate="accepted", first_s=first_s)
        build.manifest["hosts"] = [entry("s", 0, role="server"), entry("a", 1)]
        client = RunBuilder(tmp_path / f"a{first_s}")
        client.process("client", 0)
        client.connect(50)
        whole = RunBuilder(tmp_path / f"w{first_s}")
        whole.stages(1.0, 5.0)
        whole.manifest["hosts"] = build.manifest.pop("hosts")
        run = whole.write()
        (run.path / "hosts").mkdir()
        for name, each in (("s", build), ("a", client)):
            shutil.move(each.write().path, run.path / "hosts" / name)
        return [line for line in summarise(load(run)).missing if "clocks of the hosts" in line]

    assert told(0.001) == []
    assert len(told(-0.5)) == 1


def test_of_each_time_it_is_known_whether_it_is_moved():
    columns = {c.name for table in schema.TABLES.values() for c in table.columns}
    assert {name for name in columns if name.endswith("_ns")} == MOMENTS | SPANS
    assert not MOMENTS & SPANS
