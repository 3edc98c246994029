"""Comparisons of runs that never were, with known answers; what is refused, and why."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.comparison.comparable import check_comparable, check_probes, probes_that_ran
from analysis.comparison.comparison import RunDigest, compare
from analysis.comparison.document import document, headline, noise_note
from analysis.comparison.run_conditions import changes, conditions, value_words, variant_key
from analysis.comparison.run_figures import FIGURE_NAMES, Figure
from analysis.stats.spread import Difference
from probes.contract.errors import ExitCode, HostError, UsageError

MANIFEST: dict[str, Any] = {
    "schema_version": 1,
    "tool_version": "0.1.0",
    "tool_commit": "abcdef123456",
    "status": "finished",
    "argv": ["profile-run", "--connections", "1009"],
    "target_connections": 1009,
    "settings": {"accept": "reuseport", "keepalive_s": None, "nofile": None, "probes": ["a", "b"]},
    "plan": {
        "target_connections": 1009,
        "workers": 2,
        "accept": "reuseport",
        "constraints": [{"available": 1}],
    },
    "host": {
        "kernel": "6.18.0",
        "machine": "x86_64",
        "cpu_count": 2,
        "cpu_model": "Example",
        "memory_available_bytes": 1,
        "network_namespace": "own",
        "sysctls": {"fs.file-max": 1000},
        "cgroup": {"path": "/a", "memory_limit_bytes": None},
    },
    "probes_asked": ["a", "b"],
}


def rung(limit: str, predicted: int | None, **values: Any) -> dict[str, Any]:
    blank = {
        "limit": limit, "scope": "host", "subject": "the host", "capacity": 1000.0, "unit": "count",
        "used_at_peak": 1.0, "per_connection": 1.0, "fit_error_pct": None, "source": "", "note": "",
        "met": False, "predicted_connections": predicted,
    }  # fmt: skip
    return blank | values


def make_digest(
    run_id: str,
    figures: dict[str, float] | None = None,
    *,
    cause: str = "reached",
    ladder: list[dict[str, Any]] | None = None,
    change: Callable[[dict[str, Any]], None] | None = None,
    error: float | None = None,
) -> RunDigest:
    manifest = copy.deepcopy(MANIFEST) | {"run_id": run_id}
    if change is not None:
        change(manifest)
    known = {"held_count": 1009.0, **(figures or {})}
    made = {
        name: Figure(name, known.get(name), "count", "lower", label=name, error=error)
        for name in FIGURE_NAMES
    }
    made["established_per_s"] = replace(made["established_per_s"], better="higher", unit="per_s")
    verdict = {
        "run": {"target_connections": manifest["target_connections"]},
        "verdict": {
            "cause": cause, "side": "server", "at_connections": 1009, "confidence": "high",
            "sentence": f"It ended with {cause}.",
        },
        "findings": [
            {"cause": cause, "severity": "binding"},
            {"cause": "accept-spin", "severity": "contributing"},
            {"cause": "accept-imbalance", "severity": "info"},
        ],
        "ladder": ladder or [],
        "probes": [{"name": "a", "state": "ran", "lost": 0}],
    }  # fmt: skip
    return RunDigest(manifest, verdict, made)


def shared(manifest: dict[str, Any]) -> None:
    manifest["settings"]["accept"] = "shared"
    manifest["plan"]["accept"] = "shared"


def two_variants(a: list[float], b: list[float], name: str = "established_per_s"):
    runs = [make_digest(f"a{i}", {name: value}) for i, value in enumerate(a)]
    runs += [make_digest(f"b{i}", {name: value}, change=shared) for i, value in enumerate(b)]
    comparison = compare(runs)
    row = next(row for row in comparison.figures if row.name == name)
    return comparison, row


# -- grouping and what changed ----------------------------------------------------------------


def test_repeats_are_grouped_whatever_their_order():
    runs = [make_digest("a0"), make_digest("b0", change=shared), make_digest("a1")]
    comparison = compare(runs)
    assert [(v.letter, v.label, v.run_count) for v in comparison.variants] == [
        ("A", "accept=reuseport", 2),
        ("B", "accept=shared", 1),
    ]
    assert [(c.area, c.name, c.values) for c in comparison.changes] == [
        ("settings", "accept", ("reuseport", "shared"))
    ], "the plan's entry of the same name says nothing new"


@pytest.mark.parametrize(
    "moving",
    [
        lambda m: m["host"].update(memory_available_bytes=99),
        lambda m: m["host"]["cgroup"].update(path="/b"),
        lambda m: m["plan"].update(constraints=[{"available": 2}]),
        lambda m: m["settings"].update(an_option_of_later=None),
        lambda m: m.update(tool_commit="other"),
    ],
)
def test_what_moves_by_itself_makes_no_variant(moving):
    assert len(compare([make_digest("a"), make_digest("b", change=moving)]).variants) == 1


@pytest.mark.parametrize(
    ("name", "moving"),
    [
        ("fs.file-max", lambda m: m["host"]["sysctls"].update({"fs.file-max": 7})),
        ("memory_limit_bytes", lambda m: m["host"]["cgroup"].update(memory_limit_bytes=7)),
        ("tool_version", lambda m: m.update(tool_version="0.2.0")),
        ("target_connections", lambda m: m.update(target_connections=23)),
        ("workers", lambda m: m["plan"].update(workers=3)),
        ("keepalive_s", lambda m: m["settings"].update(keepalive_s=5.0)),
    ],
)
def test_every_other_condition_makes_one_and_is_named(name, moving):
    comparison = compare([make_digest("a"), make_digest("b", change=moving)])
    assert len(comparison.variants) == 2
    assert len(comparison.changes) == 1
    assert comparison.changes[0].name.endswith(name)
    assert name in comparison.variants[1].label


def test_names_of_the_caller_win_and_keep_rows_apart():
    runs = [make_digest("a"), make_digest("b"), make_digest("c")]
    comparison = compare(runs, names={"a": "row 1", "b": "row 2", "c": "row 1"})
    assert [(v.label, v.run_count) for v in comparison.variants] == [("row 1", 2), ("row 2", 1)]


def test_probes_that_all_have_are_not_listed():
    found = changes(
        [
            {"settings": {"probes": ["live", "host", "tcp"]}},
            {"settings": {"probes": ["live", "host"]}},
        ]
    )
    assert found[0].values == ("2 in common, tcp", "2 in common")


def test_values_in_words():
    assert value_words("keepalive_s", None) == "off"
    assert value_words("gc", False) == "off"
    assert value_words("port_range", [40000, 40999]) == "40000-40999"
    assert value_words("source_addresses", [f"127.0.0.{n}" for n in range(2, 9)]) == (
        "7: 127.0.0.2 to 127.0.0.8"
    )
    assert value_words("memory", 1234567) == "1,234,567"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.text(max_size=5), json_values), st.dictionaries(st.text(), json_values))
def test_two_manifests_are_one_variant_exactly_when_nothing_changed(a, b):
    first, second = {"settings": a}, {"settings": b}
    same = variant_key(first) == variant_key(second)
    assert same == (not changes([first, second]))
    assert variant_key(first) == variant_key(json.loads(json.dumps(first)))
    assert set(conditions(first)) <= {("settings", name) for name in a}


def test_more_than_26_variants_have_letters():
    runs = [
        make_digest(f"r{n}", change=lambda m, n=n: m["plan"].update(workers=n)) for n in range(30)
    ]
    letters = [variant.letter for variant in compare(runs).variants]
    assert letters[:2] + letters[25:28] == ["A", "B", "Z", "AA", "AB"]


# -- differences ------------------------------------------------------------------------------


def test_a_difference_beyond_the_noise_is_claimed_with_its_direction_and_worth():
    comparison, row = two_variants([100, 104, 110], [140, 142, 150])
    (against,) = row.against
    assert against.difference is Difference.HIGHER
    assert against.change == 38
    assert against.change_pct == pytest.approx(100 * 38 / 104)
    assert against.is_better is True
    assert row.values == ((100, 104, 110), (140, 142, 150))
    assert "1 of 2 key figures and 0 of 0 limits differ" in headline(comparison)
    assert comparison.is_noise_known


def test_lower_is_worse_for_a_rate_and_better_for_a_cost():
    _, rate = two_variants([140, 142, 150], [100, 104, 110])
    assert rate.against[0].is_better is False
    _, cost = two_variants([140, 142, 150], [100, 104, 110], "ramp_s")
    assert cost.against[0].is_better is True


def test_noise_hides_what_is_smaller():
    comparison, row = two_variants([100, 104, 110], [112, 114, 120])
    assert row.against[0].difference is Difference.WITHIN_NOISE
    assert row.against[0].is_better is None
    assert "No difference is larger than the noise" in headline(comparison)


def test_single_runs_claim_nothing_and_say_what_helps():
    comparison, row = two_variants([100], [100_000])
    assert row.against[0].difference is Difference.NOISE_UNKNOWN
    assert not comparison.is_noise_known
    assert "record each variant three times" in headline(comparison)
    assert "three runs or fewer" in noise_note(comparison)


def test_what_one_variant_did_not_measure_is_not_compared():
    runs = [make_digest("a", {"ramp_s": 3.0}), make_digest("b", change=shared)]
    row = next(row for row in compare(runs).figures if row.name == "ramp_s")
    assert row.against[0].difference is Difference.NOT_MEASURED
    assert row.against[0].change is None
    assert row.is_measured


def test_repeats_only_are_noise_and_nothing_else():
    comparison = compare([make_digest(f"a{n}", {"ramp_s": 3.0 + n}) for n in range(3)])
    assert len(comparison.variants) == 1
    assert "what they differ by is noise" in headline(comparison)
    assert not any(row.is_claimed for row in comparison.figures)


def test_verdicts_side_by_side():
    runs = [make_digest("a0"), make_digest("a1", cause="fd-limit-process")]
    runs += [make_digest("b0", cause="fd-limit-process", change=shared)]
    comparison = compare(runs)
    assert comparison.variants[0].causes == {"reached": 1, "fd-limit-process": 1}
    assert comparison.variants[1].verdicts[0].also == ("accept-spin",), "info is left out"
    assert headline(comparison).startswith(
        "The variants end differently: A with the target reached or fd-limit-process, "
        "B with fd-limit-process."
    )


# -- ladder -----------------------------------------------------------------------------------


def fds(predicted: int, pid: int, capacity: float = 1000.0, **values: Any) -> dict[str, Any]:
    subject = f"worker 0 (pid {pid}, server)"
    return rung(
        "fds_per_process", predicted, scope="process", subject=subject, capacity=capacity, **values
    )


def test_rungs_are_matched_by_limit_and_side_not_by_pid_and_the_nearest_counts():
    a = make_digest("a", ladder=[fds(700, 11), fds(900, 12), rung("file_max", 5000)])
    b = make_digest("b", ladder=[rung("file_max", 5000), fds(1400, 21)], change=shared)
    rows = compare([a, b]).ladder
    assert [(row.limit, row.side) for row in rows] == [
        ("fds_per_process", "server"),
        ("file_max", ""),
    ]
    assert [spread.median for spread in rows[0].predicted] == [700, 1400]


def test_a_capacity_that_was_set_anew_moves_its_limit_without_repeats():
    a, b = (
        make_digest("a", ladder=[fds(786, 11, 400, met=True)]),
        make_digest("b", ladder=[fds(1186, 12, 600)], change=shared),
    )
    (row,) = compare([a, b]).ladder
    assert row.against[0].difference is Difference.HIGHER
    assert row.against[0].is_better is True
    assert row.met_counts == (1, 0)
    same = make_digest("c", ladder=[fds(1186, 12, 401)], change=shared)
    (row,) = compare([a, same]).ladder
    assert row.against[0].difference is Difference.NOISE_UNKNOWN, "one descriptor is not a setting"
    against_it = make_digest("d", ladder=[fds(500, 12, 600)], change=shared)
    (row,) = compare([a, against_it]).ladder
    assert row.against[0].difference is Difference.NOISE_UNKNOWN, "it moved the other way"


def test_fit_errors_of_a_ladder_count():
    def with_error(error_pct):
        ladders = (
            [rung("memory", 1000, fit_error_pct=error_pct)],
            [rung("memory", 3000, fit_error_pct=error_pct)],
        )
        runs = [
            make_digest("a", ladder=ladders[0]),
            make_digest("b", ladder=ladders[1], change=shared),
        ]
        return compare(runs).ladder[0].against[0].difference

    assert with_error(1.0) is Difference.HIGHER
    assert with_error(30.0) is Difference.NOISE_UNKNOWN


def test_a_limit_without_a_prediction_keeps_its_reason():
    a = make_digest("a", ladder=[rung("conntrack", None, note="nothing is tracked")])
    b = make_digest("b", change=shared)
    (row,) = compare([a, b]).ladder
    assert row.notes == ("nothing is tracked", "this limit is not on its ladder")
    assert not row.is_predicted


# -- the document -----------------------------------------------------------------------------


def test_the_document_is_json_and_has_null_for_what_is_not_known():
    comparison, _ = two_variants([100], [200])
    made = document(comparison)
    json.dumps(made, allow_nan=False)
    assert [variant["letter"] for variant in made["variants"]] == ["A", "B"]
    figures = {figure["name"]: figure for figure in made["figures"]}
    assert list(figures) == list(FIGURE_NAMES)
    assert figures["ramp_s"]["values"][0]["median"] is None
    assert figures["established_per_s"]["repeats"] == [[100], [200]]
    assert figures["established_per_s"]["against_base"] == [
        {"difference": "noise not known", "change": 100, "change_pct": 100, "is_better": None}
    ]


def test_other_commits_and_lost_events_are_cautions():
    lossy = make_digest("b", change=lambda m: m.update(tool_commit="fedcba654321"))
    lossy.verdict["probes"][0]["lost"] = 1009
    cautions = compare([make_digest("a"), lossy], cautions=["first"]).cautions
    assert cautions[0] == "first"
    assert "2 commits" in cautions[1]
    assert "1,009 events in 1 of 2 runs (b)" in cautions[2]
    assert compare([make_digest("a"), make_digest("b")]).cautions == ()


# -- refusals ---------------------------------------------------------------------------------


def manifests(*edits: Callable[[dict[str, Any]], Any]) -> list[dict[str, Any]]:
    made = [copy.deepcopy(MANIFEST) | {"run_id": f"run-{n}"} for n in range(len(edits))]
    for manifest, edit in zip(made, edits, strict=True):
        edit(manifest)
    return made


def keep(_manifest):
    return None


@pytest.mark.parametrize(
    ("edit", "says", "helps"),
    [
        (lambda m: m.update(schema_version=2), "schema versions: 1 and 2", "one version"),
        (lambda m: m.update(status="interrupted"), "run-1 was interrupted", "leave it out"),
        (lambda m: m.update(status="running"), "run-1 did not finish", "--connections 1009"),
        (lambda m: m.update(status="failed"), "run-1 failed", "record it again"),
        (
            lambda m: m["host"].update(network_namespace="host"),
            "different networks",
            "--host-network",
        ),
        (lambda m: m.update(run_id="run-0"), "named twice", "once"),
    ],
)
def test_what_is_not_comparable_is_refused_with_a_reason_and_a_fix(edit, says, helps):
    with pytest.raises(UsageError) as refused:
        check_comparable(manifests(keep, edit), across_hosts=True)
    assert says in refused.value.message
    assert helps in refused.value.fix
    assert refused.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda m: m["host"].update(kernel="6.1.0"), "kernel release 6.18.0 and 6.1.0"),
        (lambda m: m["host"].update(machine="aarch64"), "machine x86_64 and aarch64"),
        (lambda m: m["host"].update(cpu_count=8), "number of CPUs 2 and 8"),
        (lambda m: m["host"].update(cpu_model="Other"), "processor Example and Other"),
    ],
)
def test_other_hosts_need_a_flag(edit, says):
    two = manifests(keep, edit)
    with pytest.raises(HostError) as refused:
        check_comparable(two)
    assert says in refused.value.message
    assert "--across-hosts" in refused.value.fix
    assert refused.value.exit_code is ExitCode.HOST_CANNOT
    check_comparable(two, across_hosts=True)


def test_runs_that_differ_by_plan_or_settings_pass():
    check_comparable(manifests(keep, shared, keep))


def test_one_run_is_nothing_to_compare():
    with pytest.raises(UsageError, match="nothing to compare"):
        check_comparable(manifests(keep))


def test_other_probes_are_refused_and_named_unless_asked_for():
    two = manifests(keep, lambda m: m.update(probes_asked=["a"]))
    ran = [frozenset("ab"), frozenset("a")]
    with pytest.raises(UsageError, match="b ran only in run-0") as refused:
        check_probes(two, ran)
    assert "same --probes" in refused.value.fix
    assert "--across-probes" in refused.value.fix
    assert "watching costs CPU" in check_probes(two, ran, across_probes=True)
    assert check_probes(two, [ran[0], ran[0]]) == ""


def test_a_probe_that_was_asked_for_and_did_not_run_asks_for_that_run_again():
    with pytest.raises(UsageError) as refused:
        check_probes(manifests(keep, keep), [frozenset("ab"), frozenset("a")])
    assert "record that run again (profile-run --connections 1009)" in refused.value.fix


def test_only_probes_that_ran_count():
    states = [{"name": "a", "state": "ran"}, {"name": "b", "state": "unavailable"}]
    assert probes_that_ran({"probes": states}) == {"a"}
    assert probes_that_ran({}) == frozenset()
