from __future__ import annotations

import pytest

from analysis.frames.run_frames import empty_table, load
from probes.contract import schema
from probes.contract.errors import RunDirError
from probes.contract.rundir import RunDir, open_run_dir


@pytest.mark.parametrize("name", schema.TABLES)
def test_an_absent_table_is_an_empty_frame_with_its_types(build, name):
    frame = build.frames()[name]
    assert frame.empty
    assert list(frame.columns) == list(schema.TABLES[name].column_names)
    wanted = empty_table(name)
    assert frame.dtypes.equals(wanted.dtypes)


def test_rows_of_several_writers_come_in_time_order(build):
    build.add("events", at_s=2.0, event="b")
    run = build.write()
    other = run.writer("events", "another")
    other.append(build.ns(1.0), "a", 0, "")
    other.append(build.ns(3.0), "c", 0, "")
    other.close()
    assert load(run)["events"]["event"].tolist() == ["a", "b", "c"]


def test_a_stream_cut_inside_a_batch_is_reported_and_keeps_its_whole_batches(build):
    for i in range(23):
        build.add("events", at_s=float(i), event="x")
    run = build.write()
    path = next(run.table_dir("events").glob("*.arrows"))
    writer = run.writer("sockstat", "w")
    for batch in range(2):
        writer.append(*[batch] * len(schema.TABLES["sockstat"].columns))
        writer.flush()
    writer.close()
    cut = next(run.table_dir("sockstat").glob("*.arrows"))
    cut.write_bytes(cut.read_bytes()[:-60])
    frames = load(run)
    assert len(frames["sockstat"]) == 1
    assert len(frames["events"]) == 23
    assert frames.cut_files == [cut]
    assert any(cut.name in line for line in frames.missing)
    assert not any(path.name in line for line in frames.missing)


def test_live_bin_stands_in_when_the_supervisor_died(build, make_live):
    build.manifest["status"] = "running"
    run = build.write()
    make_live(run.path)
    frames = load(run)
    connections = frames["connections"]
    assert len(connections) == 46
    assert connections.groupby("client").size().to_dict() == {0: 23, 1: 23}
    assert (connections["errno"] == 104).sum() == 1
    assert frames["processes"]["role"].tolist() == ["server", "client", "client"]
    assert frames["processes"]["nofile_soft_count"].tolist() == [1009] * 3
    samples = frames["live_samples"]
    assert len(samples) == 3
    assert samples["at_ns"].iloc[0] == build.ns(0) + 5000
    assert any("did not finish" in line for line in frames.missing)
    for name in ("connections", "processes", "live_samples"):
        assert frames[name].dtypes.equals(empty_table(name).dtypes), name


def test_what_the_supervisor_wrote_is_not_replaced_by_live_bin(build, make_live):
    build.add("connections", connection=0, client=5, start_s=0.1, stage="open")
    build.add("processes", pid=77, role="server")
    build.add("live_samples", at_s=1.0, pid=77, role="server")
    run = build.write()
    make_live(run.path)
    frames = load(run)
    assert frames["connections"]["client"].tolist() == [5]
    assert frames["processes"]["pid"].tolist() == [77]
    assert len(frames["live_samples"]) == 1


@pytest.mark.parametrize("size_bytes", [0, 100, 5000])
def test_a_cut_live_bin_is_said_and_not_raised(build, make_live, size_bytes):
    run = build.write()
    make_live(run.path)
    path = run.path / "live.bin"
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:size_bytes])
    frames = load(run)
    assert frames["connections"].empty
    assert any("connections" in line for line in frames.missing)


def test_another_schema_version_is_refused_with_the_fix(build):
    build.manifest["schema_version"] = 999
    build.run.write_manifest(build.manifest)
    with pytest.raises(RunDirError, match="999"):
        open_run_dir(build.run.path)


def test_no_manifest_is_one_line(tmp_path):
    with pytest.raises(RunDirError, match=r"manifest\.json"):
        load(RunDir(tmp_path))
