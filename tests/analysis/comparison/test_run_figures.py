"""Key figures of a run with known answers."""

from __future__ import annotations

import pytest

from analysis.comparison.run_figures import CPU_TICK_S, FIGURE_NAMES, key_figures
from analysis.summary import summarise

CONNECTIONS = 1_009
RAMP_S, HOLD_S = 4.0, 6.0
SOCKET_BYTES = 4_096


@pytest.fixture
def build_run(build):
    """1,009 connections in 4 s; server at 30 % of a core in the ramp, client at 50 %."""
    build.manifest["target_connections"] = CONNECTIONS
    build.stages(ramp_s=RAMP_S, hold_s=HOLD_S)
    server, client = build.process("server", 0), build.process("client", 0)
    build.process("server", 1)
    for pid, pct in ((server, 30.0), (client, 50.0)):
        build.cpu(pid, 0.0, from_s=-1.0, until_s=0.0)
        build.cpu(pid, pct, from_s=0.0, until_s=RAMP_S)
        build.cpu(pid, 2.0, from_s=RAMP_S, until_s=RAMP_S + HOLD_S)
    build.connect(CONNECTIONS, until_s=RAMP_S)
    for quarter in range(-2, 40):
        at_s = quarter / 4
        opened = round(max(0, min(CONNECTIONS, CONNECTIONS * at_s / RAMP_S)))
        build.live(server, at_s, open_count=round(opened * 0.6))
        build.live(801, at_s, open_count=opened - round(opened * 0.6))
        build.add(
            "slab_caches",
            at_s=at_s,
            cache="TCP",
            active_objects_count=100 + 2 * opened,
            object_size_bytes=SOCKET_BYTES,
        )
    return build


def test_every_figure_is_there_and_nothing_is_made_up_for_an_empty_run(build):
    figures = key_figures(summarise(build.frames()))
    assert tuple(figures) == FIGURE_NAMES
    assert all(name == figure.name for name, figure in figures.items())
    known = {name for name, figure in figures.items() if figure.value is not None}
    assert known == {"held_count", "failed_count", "lost_count"}


def test_known_answers(build_run):
    figures = key_figures(summarise(build_run.frames()))
    value = {name: figure.value for name, figure in figures.items()}
    assert (value["held_count"], value["failed_count"], value["lost_count"]) == (CONNECTIONS, 0, 0)
    assert value["ramp_s"] == RAMP_S
    assert value["established_per_s"] == pytest.approx(CONNECTIONS / RAMP_S, rel=0.01)
    assert value["server_cpu_us_per_connection"] == pytest.approx(
        0.30 * RAMP_S * 1e6 / CONNECTIONS, rel=0.01
    )
    assert value["client_cpu_us_per_connection"] == pytest.approx(
        0.50 * RAMP_S * 1e6 / CONNECTIONS, rel=0.01
    )
    assert value["server_hold_cpu_pct"] == pytest.approx(2.0, rel=0.2)
    assert value["connect_p50_ms"] == pytest.approx(0.1)
    assert value["connect_p99_ms"] == pytest.approx(0.1)
    assert value["open_p99_ms"] == pytest.approx(0.5)
    assert value["kernel_bytes_per_connection"] == pytest.approx(2 * SOCKET_BYTES, rel=0.01)
    assert value["bytes_per_connection"] >= value["kernel_bytes_per_connection"]
    assert value["worker_imbalance_pct"] == pytest.approx(20, abs=0.1)
    assert value["bpf_cpu_pct"] is None, "no eBPF ran"


def test_only_a_fit_has_an_error_and_only_ticks_a_resolution(build_run):
    figures = key_figures(summarise(build_run.frames()))
    fitted = {name for name, figure in figures.items() if figure.error is not None}
    assert fitted == {"bytes_per_connection", "kernel_bytes_per_connection"}
    assert figures["server_bytes_per_connection"].value == 0, "it never grew: no fit, no error"
    ticks = {name for name, figure in figures.items() if figure.resolution > 0}
    assert ticks == {
        "server_cpu_us_per_connection",
        "client_cpu_us_per_connection",
        "server_hold_cpu_pct",
    }
    server = figures["server_cpu_us_per_connection"]
    assert server.resolution == pytest.approx(CPU_TICK_S * 1e6 / CONNECTIONS)


def test_a_ramp_that_was_hardly_sampled_has_no_cpu_figure(build):
    """Process samples begin with the hold phase: what the ramp cost was not seen."""
    build.stages(ramp_s=RAMP_S, hold_s=HOLD_S)
    server = build.process("server", 0)
    build.cpu(server, 2.0, from_s=RAMP_S - 0.5, until_s=RAMP_S + HOLD_S)
    build.connect(CONNECTIONS, until_s=RAMP_S)
    figures = key_figures(summarise(build.frames()))
    assert figures["server_cpu_us_per_connection"].value is None
    assert figures["server_hold_cpu_pct"].value == pytest.approx(2.0, rel=0.2)


def test_a_ramp_shorter_than_the_sampling_keeps_its_whole_cost(build):
    """50 ms at a full core, seen as 10 % of a 0.5 s interval."""
    build.stages(ramp_s=0.05, hold_s=2.0)
    server = build.process("server", 0)
    build.cpu(server, 0.0, from_s=-1.0, until_s=0.0)
    build.cpu(server, 10.0, from_s=0.0, until_s=0.5)
    build.cpu(server, 0.0, from_s=0.5, until_s=2.0)
    build.connect(23, until_s=0.049)
    figures = key_figures(summarise(build.frames()))
    value = figures["server_cpu_us_per_connection"].value
    assert value == pytest.approx(0.05 * 1e6 / 23)


def test_parts_that_shrink_do_not_pay_for_those_that_grow(build_run):
    """A second cache gives memory back while connections grow; a third grows by 1,024 bytes."""
    for quarter in range(-2, 40):
        at_s = quarter / 4
        opened = round(max(0, min(CONNECTIONS, CONNECTIONS * at_s / RAMP_S)))
        for cache, count in (("dentry", 9_000 - opened), ("filp", opened)):
            build_run.add(
                "slab_caches",
                at_s=at_s,
                cache=cache,
                active_objects_count=count,
                object_size_bytes=1_024,
            )
    figures = key_figures(summarise(build_run.frames()))
    value = figures["kernel_bytes_per_connection"].value
    assert value == pytest.approx(2 * SOCKET_BYTES + 1_024, rel=0.01)
