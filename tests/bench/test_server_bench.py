"""The bench of other people's servers: what is left to measure, what is kept, what is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench import server_document, server_figures, server_page, server_run, server_tables
from bench.peers import catalogue
from bench.peers.catalogue import BY_NAME
from bench.server_bench import LARGE, expected_s, missing_runs
from bench.server_figures import ServerRun, ServerRuns
from harness.planning.host import read_host

ROOT = Path(__file__).resolve().parents[2]
SERVERS = ["node-none", "nginx"]


def run(server="nginx", size=15_000, probes="none", **values) -> ServerRun:
    blank = {"workers": 2, "ramp_s": 2.0, "established_count": size, "failed_count": 0,
             "held_count": size, "server_cpu_us": 100.0, "server_pss_bytes": 5_000.0,
             "base_pss_bytes": 40_000_000, "slab_bytes": 16_400.0, "cause": "reached",
             "versions": {"nginx": "1.22.1"}, "background_pct": 2.0}  # fmt: skip
    return ServerRun(server, size, probes, **{**blank, **values})


def keys(runs: ServerRuns, sizes=(15_000, LARGE)):
    wanted = missing_runs(runs, SERVERS, sizes, 2, 1)
    return [(each.server, each.target_connections, each.probes) for each in wanted]


def test_rounds_go_over_all_servers_and_what_is_there_is_left_out():
    everything = keys(ServerRuns())
    assert everything[:4] == [
        ("node-none", 15_000, "none"), ("nginx", 15_000, "none"),
        ("nginx", 15_000, "none"), ("node-none", 15_000, "none"),
    ], "every second round goes backwards"  # fmt: skip
    assert len(everything) == 2 * 2 + 2 * (1 + 1)
    assert [key[2] for key in everything[-2:]] == ["auto", "auto"], "the verdicts, at the largest"
    assert keys(ServerRuns(), sizes=(15_000,))[-1] == ("nginx", 15_000, "auto")
    part = ServerRuns([run(), run(size=LARGE, probes="auto"), run(size=LARGE, error="it died")])
    left = keys(part)
    assert left.count(("nginx", 15_000, "none")) == 1
    assert ("nginx", LARGE, "auto") not in left
    assert ("nginx", LARGE, "none") in left, "a run that failed does not count"


def test_what_a_busy_host_disturbed_does_not_count_and_is_measured_again():
    loud = run(background_pct=180.0, ramp_s=50.0)
    disturbed = run(ramp_s=40.0, host_cpu_us=200.0, server_cpu_us=100.0, client_cpu_us=20.0)
    calm = run(ramp_s=2.0, host_cpu_us=130.0, server_cpu_us=100.0, client_cpu_us=20.0)
    runs = ServerRuns([loud, disturbed])
    assert keys(runs).count(("nginx", 15_000, "none")) == 2
    assert runs.spread("nginx", 15_000, "ramp_s").high == 50.0, "better than nothing, and marked"
    runs.all.append(calm)
    assert keys(runs).count(("nginx", 15_000, "none")) == 1
    assert runs.spread("nginx", 15_000, "ramp_s").high == 2.0


def test_pieces_add_up_in_one_file(tmp_path):
    path = tmp_path / "runs" / "servers.json"
    assert server_figures.load(path).all == []
    server_figures.save(ServerRuns([run()], {"kernel": "6"}), path)
    again = server_figures.load(path)
    again.all.append(run(ramp_s=4.0))
    server_figures.save(again, path)
    found = server_figures.load(path)
    assert found.about == {"kernel": "6"}
    spread = found.spread("nginx", 15_000, "ramp_s")
    assert spread is not None
    assert (spread.median, spread.low, spread.high, spread.count) == (3.0, 2.0, 4.0, 2)
    assert found.without(["nginx"]).all == []


@pytest.mark.privileged
@pytest.mark.shared
def test_a_real_run_has_its_figures(monkeypatch):
    monkeypatch.setattr(server_run, "_HOLD_S", 1.5)
    peer = BY_NAME["socketify"]
    assert not peer.missing, f"{peer.missing}: bash .ci/setup peers"
    run = ServerRun(peer.name, 509, "none")
    server_run.measure(run, peer, read_host())
    assert (run.established_count, run.held_count, run.failed_count) == (509, 509, 0)
    assert (run.workers, run.cause, run.is_reached) == (1, "reached", True)
    assert run.ramp_s > 0
    assert run.server_cpu_us > 0
    assert run.base_pss_bytes > 1_000_000
    assert "python socketify_server.py" in run.next_wall
    assert run.next_wall_connections > 509


@pytest.fixture
def measured() -> ServerRuns:
    wall = run(
        size=LARGE, probes="auto", held_count=64_000, cause="ephemeral-ports-exhausted",
        sentence="Worker 3 (nginx: worker process, pid 812, server) had no port.",
    )  # fmt: skip
    other = run("node-none", next_wall="fds_per_process of worker 1 (node x, pid 7, server)",
                next_wall_connections=19_980, background_pct=40.0)  # fmt: skip
    return ServerRuns(
        [run(), run(ramp_s=3.0), run(ramp_s=4.0), other, wall, run(size=LARGE, error="it died")],
        {"kernel": "Linux 6.18"},
    )


def test_the_document_has_repeats_spread_versions_and_walls(measured):
    text = server_document.render(measured)
    assert "3.00 (2.00 to 4.00)" in text
    assert "| 16.4 |" in " ".join(text.split())
    assert "1, none quiet" in text
    assert "64,000" in text
    assert "had no port" in text
    assert "pid" not in text, "numbers of one run only"
    assert "nginx 1.22.1" in text
    assert "it died" in text
    assert "not quiet in 1 of 6 runs, of node-none" in text
    assert "Linux 6.18" in text


def test_what_one_must_know_of_a_server_stands_where_it_was_measured():
    (said,) = server_tables.remarks(ServerRuns([run(server="socketify")]))
    assert "idle_relaxation_time" in said
    assert server_tables.remarks(ServerRuns([run(server="java")])) == []


def test_the_page_says_the_same_and_runs_no_stranger_s_text(measured):
    measured.all.append(run(size=LARGE, error="<script>pwned</script>"))
    page = server_page.page(measured)
    assert "3.00 (2.00\u00a0to\u00a04.00)" in page
    assert "64,000" in page
    assert "<script>pwned" not in page


def test_what_is_left_is_estimated_by_what_was_measured():
    runs = ServerRuns([run(took_s=7.0), run(took_s=9.0), run(took_s=80.0, error="it died")])
    assert expected_s(runs, [run(), run()]) == 16.0
    assert expected_s(ServerRuns(), [run(), run(size=LARGE)]) > 16.0


def test_the_clients_time_is_not_called_the_servers(measured):
    whose = [
        run("socketify", LARGE, ramp_busy_pct=99.0, client_cpu_us=30.0, server_cpu_us=10.0),
        run("uvicorn", LARGE, ramp_busy_pct=99.0, client_cpu_us=60.0, server_cpu_us=400.0),
        run("go", LARGE, ramp_busy_pct=40.0, client_cpu_us=20.0, server_cpu_us=80.0),
        run("java", LARGE, ramp_busy_pct=50.0, client_cpu_us=20.0, server_cpu_us=80.0, workers=1),
    ]
    said = server_tables.what_limits(ServerRuns(whose), LARGE)
    assert "CPU tells more: socketify (uWebSockets) (25 %)." in said
    assert "connections waited: Go gorilla/websocket (40 %)." in said
    assert "uvicorn" not in said
    assert "Java" not in said, "one process cannot fill two cores"
    assert server_tables.what_limits(measured, LARGE) == "", "nothing is known of older runs"


def test_only_servers_that_held_all_are_compared_by_time(measured):
    measured.all += [run(size=LARGE, ramp_s=1.0, held_count=28_232), run("go", LARGE, ramp_s=9.0)]
    (bar,) = server_page.bars(measured, LARGE, server_tables.RAMP, of_reached=True).bars
    assert (bar.name, bar.text) == ("Go gorilla/websocket", "9.00 s")
    found = {tile.label: (tile.value, tile.note) for tile in server_page.tiles(measured)}
    assert found["First at 120,000"] == ("9.00 s", "Go gorilla/websocket")
    assert found["Held 120,000"] == ("1 of 2", "servers")


@pytest.mark.parametrize(
    ("name", "connections", "workers"),
    [("picows", 15_000, 1), ("picows", 120_000, 7), ("node-none", 120_000, 9), ("nginx", 9_000, 1),
     ("nginx", 15_000, 2), ("java", 19_936, 1), ("java", 19_937, 2)],
)  # fmt: skip
def test_there_are_as_many_workers_as_the_descriptors_ask_for(name, connections, workers):
    assert BY_NAME[name].workers_for(connections, 20_000) == workers


def test_the_port_stays_to_be_filled_in():
    for peer in catalogue.PEERS:
        assert "{port}" in peer.command(2)


def test_an_unknown_server_is_usage():
    done = subprocess.run(
        [sys.executable, "-m", "bench.server_bench", "--servers", "iis"],
        capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "iis" in done.stderr
    assert "Traceback" not in done.stderr
