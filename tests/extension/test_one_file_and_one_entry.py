"""A new limit, cause or probe is one file and its entry in the list of its kind.

The packages are copied, a toy of each kind is added, and a fresh process finds them wherever a
person meets a limit, a cause or a probe.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.analysis.conftest import RunBuilder

ROOT = Path(__file__).parents[2]
PACKAGES = ("analysis", "documentation", "harness", "probes", "reports")

LIMIT = '''"""How many toys there may be."""

from probes.contract.limits.limit import Bound, HostTable, Limit, Sampled

LIMIT = Limit(
    name="toys",
    title="Toys of the host",
    words="the box of toys",
    unit="count",
    noun="toys",
    source="kernel.pid_max",
    cost="a thousand",
    raised_by="a larger box",
    bound=Bound.STOPS,
    labels={"host": "toys in the box"},
    table=HostTable(
        maximum="kernel/pid_max",
        per_connection_count=1_000,
        note="a thousand a connection",
        sampled=Sampled(table="sockstat", used="conntrack_count", capacity="tcp_mem_max_pages"),
    ),
)
'''

CAUSE = '''"""``toy-cause``: connections fail for fun.

Proof: they failed.
"""

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Fix, Subject

CAUSE = Cause(id="toy-cause", line="connections fail for fun", decide="ask the toy")


def find(signs):
    view = signs.view
    if not view.failed_count:
        return []
    return [
        Finding(
            cause=CAUSE.id,
            severity="warning",
            side="host",
            subject=Subject(),
            first_s=0.5,
            last_s=0.6,
            evidence=(Evidence("connections_closed", view.failed_count, "connections"),),
            explanation="A toy did it.",
            fix=(Fix("put the toy away", "none fails"),),
            sentence="A toy made them fail",
            explained_count=view.failed_count,
        )
    ]
'''

PROBE = '''"""Counts toys.

Measures:
    Toys.

Hook:
    None.

Cost:
    None.

Misses:
    What is under the bed.

Checked against:
    A child.
"""

from probes.contract.probe import Probe


class ToyProbe(Probe):
    name = "toy_probe"
'''

FOUND = """
import json, sys
from pathlib import Path

from analysis.document import document
from analysis.frames.run_frames import load
from analysis.summary import summarise
from analysis.verdict.alternatives import how_to_decide
from documentation.probes_page import probes_page
from documentation.reference import causes_page, limits_page
from harness.commands.completion import completion_script
from harness.commands.doctor import Examination
from harness.planning.host import read_host
from harness.planning.plan import make_plan
from harness.planning.request import PlanRequest
from harness.planning.text import plan_text
from markupsafe import Markup
from probes.collect import registry
from probes.collect.trial import Trial
from probes.contract.probe import Target
from probes.contract.rundir import create_run_dir, open_run_dir
from reports.elements.tables import Chart
from reports.exports.markdown import to_markdown
from reports.page.page import render
from reports.sections.view import View

# drawing takes nine tenths of a page's time
View.chart = lambda _, name, *words: Chart(name, *words[:3], Markup(""), Markup(""))

path, scratch = map(Path, sys.argv[1:])
host = read_host()
plan = make_plan(PlanRequest(connections=10_000, own_namespace=False, force=True), host)
summary = summarise(load(open_run_dir(path)))
said = document(summary)
notes = Trial(Target(create_run_dir(scratch, "x"), {}, frozenset(), None)).run(
    registry.make("toy_probe")
)
print(json.dumps({
    "plan": plan_text(plan),
    "doctor": "\\n".join(Examination(host, None, []).lines()),
    "ladder": [rung["limit"] for rung in said["ladder"]],
    "next": said["verdict"]["next_rung"],
    "cause": said["verdict"]["cause"],
    "decide": how_to_decide("reached", "toy-cause"),
    "page": render(summary),
    "markdown": to_markdown(summary),
    "causes": causes_page(),
    "limits": limits_page(),
    "probes": probes_page(),
    "completion": completion_script("bash"),
    "full": registry.resolve("full"),
    "notes": notes,
}))
"""


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Path:
    top = tmp_path_factory.mktemp("copied")
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, top / package, ignore=ignored)
    (top / "probes/contract/limits/toys.py").write_text(LIMIT)
    (top / "analysis/findings/queues/toy_cause.py").write_text(CAUSE)
    (top / "probes/samplers/toy_probe.py").write_text(PROBE)
    future = "from __future__ import annotations\n"
    for path, after, entry, imported in (
        ("probes/contract/limits/__init__.py", "        file_max.LIMIT,\n",
         "        toys.LIMIT,\n", "from probes.contract.limits import toys\n"),
        ("analysis/findings/__init__.py", "    reached,\n    no_limit_met,\n",
         "    toy_cause,\n", "from analysis.findings.queues import toy_cause\n"),
        ("probes/collect/registry.py", "_ENTRIES: tuple[ProbeEntry, ...] = (\n",
         '    ProbeEntry("toy_probe", "probes.samplers.toy_probe:ToyProbe", ("full",)),\n', ""),
    ):  # fmt: skip
        text = (top / path).read_text()
        assert text.count(after) == 1
        text = text.replace(after, after + entry).replace(future, f"{future}\n{imported}", 1)
        (top / path).write_text(text)
    return top


@pytest.fixture(scope="module")
def found(copied, tmp_path_factory) -> dict[str, object]:
    """What a process that has the toys says, of a run of which ten connections failed."""
    built = RunBuilder(tmp_path_factory.mktemp("run"))
    built.stages(ramp_s=1.0, hold_s=3.0)
    built.manifest["target_connections"] = 1_010
    for role in ("server", "client"):
        built.process(role, 0)
    built.connect(1_000)
    built.connect(10, from_s=0.5, stage="connect", errno=5, close_kind="error")
    for tenth in range(41):
        at_s = tenth / 10
        built.add("sockstat", at_s=at_s, conntrack_count=round(1_000 * min(1.0, at_s)),
                  tcp_mem_max_pages=1_500)  # fmt: skip
    run = built.write()
    done = subprocess.run(
        [sys.executable, "-c", FOUND, str(run.path), str(tmp_path_factory.mktemp("scratch"))],
        env={**os.environ, "PYTHONPATH": str(copied)},
        cwd=copied,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_limit_is_planned_told_and_predicted(found):
    assert "toys in the box" in found["plan"]
    assert "a thousand a connection" in found["doctor"]
    assert "toys" in found["ladder"]
    assert "the box of toys of the host, at about 1,500 connections" in found["next"]
    assert "Toys of the host" in found["page"]
    assert "toys" in found["markdown"]
    assert "| `toys` | Toys of the host |" in found["limits"]


def test_a_cause_is_found_ranked_and_told(found):
    assert found["cause"] == "toy-cause"
    assert found["decide"] == "ask the toy"
    assert "Connections fail for fun." in found["page"]
    assert "put the toy away" in found["markdown"]
    assert "## toy-cause" in found["causes"]
    assert "they failed" in found["causes"]


def test_a_probe_is_resolved_tried_described_and_completed(found):
    assert "toy_probe" in found["full"]
    assert found["notes"] == []
    assert "## toy_probe" in found["probes"]
    assert "What is under the bed" in found["probes"]
    assert "toy_probe" in found["completion"]
