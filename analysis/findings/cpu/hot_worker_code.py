"""``hot-worker-code``: one worker is at a full core in its own code, its siblings are not.

Proof: CPU of that worker, and the function that most of its samples are in while its siblings
hardly run it. In the hold phase, where an event loop has little to do, the CPU alone already says
that something runs; without stacks the finding has low confidence and says that the function is
not known.
Under our own load also a shorter while, in the ramp too, in which no client was answered though
clients waited: the worker took nobody then and was on a core.
Told apart from ``accept-spin`` (accept4 failing at 10^4 a second) and ``keepalive-storm`` (the
CPU is explained by messages): neither is there. ``garbage-collection`` and ``hot-acceptor`` say
better what the time of their process goes to, so this finding is not there beside them.
``worker-blocked`` is on no CPU at all. A worker that is busy with the ramp runs the same functions
as its siblings.
"""

from __future__ import annotations

from typing import Any

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, capitalised, side_of_role
from analysis.findings.cpu import (
    handshake_cost,
    hot_acceptor,
    keepalive_storm,
    message_amplification,
)
from analysis.findings.descriptors import accept_spin
from analysis.findings.memory import garbage_collection
from analysis.frames.cpu import df_flame
from analysis.server.answer_gaps import Hiccup
from analysis.signs.full_processes import is_server_full
from analysis.signs.signs import Signs
from analysis.stacks.hot_function import UNNAMED, own_function
from analysis.stacks.hot_thread import df_threads, thread_label, who_waits
from analysis.stacks.runtime_frames import (
    NamingAdvice,
    jvm_name,
    naming_advice,
)
from probes.contract.schema import SERVER_ROLES

CAUSE = Cause(
    id="hot-worker-code",
    line="one worker is at 100 % in its own code",
    effect=Effect.SLOWS_ACCEPT,
    follows_from=("cpu-quota",),
    fills_a_core=True,
    decide="py-spy top --pid PID of the worker: which function holds the core",
    decide_between={
        "host-cpu-saturated": (
            "profile-run --probes full: run-queue latency is high for all, or CPU for one alone"
        ),
        "worker-blocked": (
            "py-spy dump --pid PID of the worker, twice: running or waiting in the same place"
        ),
    },
)

_LEAST_WITHOUT_FUNCTION_S = 2.0
"""So long a watched worker is at a full core before that alone is called its limit."""


def find(signs: Signs) -> list[Finding]:
    """One finding about the hottest worker, or about one that answered nobody for a while."""
    return _hottest(signs) or _of_hiccup(signs)


def _of_hiccup(signs: Signs) -> list[Finding]:
    """The longest while in which a worker calculated and took nobody, though clients waited."""
    hiccup = next((each for each in signs.hiccups if each.is_on_core), None)
    if hiccup is None or hiccup.pid in _told_better(signs):
        return []
    subject, gap = signs.view.subject(hiccup.pid), hiccup.gap
    cpu_pct = 100 * hiccup.cpu_share
    hot = {
        "pid": hiccup.pid, "role": subject.role, "since_s": gap.since_s, "until_s": gap.until_s,
        "cpu_pct": cpu_pct, "others_cpu_pct": float("nan"),
    }  # fmt: skip
    window = (gap.since_s, gap.until_s + 0.5)
    own = own_function(signs.view, hiccup.pid, subject.role, window)
    return [_finding(signs, hot, *own, hiccup)]


def _told_better(signs: Signs) -> set[int]:
    """Processes whose time another cause explains."""
    return (
        accept_spin.spinning_pids(signs)
        | hot_acceptor.hot_acceptor_pids(signs)
        | garbage_collection.collecting_pids(signs)
        | keepalive_storm.storming_pids(signs)
        | handshake_cost.costly_pids(signs)
        | message_amplification.amplifying_pids(signs)
    )


def _hottest(signs: Signs) -> list[Finding]:
    hot = signs.hot_worker
    if hot is None or hot["role"] not in SERVER_ROLES:
        return []
    pid = int(hot["pid"])
    if pid in _told_better(signs):
        return []
    if signs.messages_explain_cpu_of(pid, float(hot["since_s"]), float(hot["until_s"])):
        return []
    window = (float(hot["since_s"]), float(hot["until_s"]) + 0.5)
    kind, function, share_pct, sibling_pct = own_function(signs.view, pid, str(hot["role"]), window)
    # A lone worker at a full core in the ramp does what it is there for, as long as attempts
    # come through.
    if hot["is_ramp_only"] and (not signs.stalled_count or not function):
        return []
    is_in_hold = float(hot["since_s"]) >= signs.view.hold.start_s or (
        float(hot["until_s"]) >= signs.view.hold.start_s + 1.0
    )
    # Of a server that is only watched nobody knows what it had to do: a full core is its limit,
    # also where no function stands out. A burst of traffic takes one for a second, and is served.
    lasted_s = float(hot["until_s"]) - float(hot["since_s"])
    if signs.view.is_attached and not function and lasted_s < _LEAST_WITHOUT_FUNCTION_S:
        return []
    says_nothing = kind not in ("", UNNAMED) and not signs.view.is_attached
    if not function and (not is_in_hold or says_nothing):
        return []
    return [_finding(signs, hot, kind, function, share_pct, sibling_pct)]


def _beside(signs: Signs) -> str:
    if signs.view.is_attached:
        return "; how many messages it served meanwhile is not seen from outside"
    return " while neither accepts nor messages explain it"


def _finding(
    signs: Signs,
    hot: dict[str, Any],
    kind: str,
    function: str,
    share_pct: float,
    sibling: float,
    hiccup: Hiccup | None = None,
) -> Finding:
    view = signs.view
    subject = view.subject(int(hot["pid"]))
    since_s, until_s, cpu_pct = float(hot["since_s"]), float(hot["until_s"]), float(hot["cpu_pct"])
    others_pct = float(hot["others_cpu_pct"])
    confidence, missing = signs.trust("process_samples")
    evidence = [
        Evidence("process_cpu", cpu_pct, "process_samples", since_s),
        Evidence("span_length", until_s - since_s, "process_samples", since_s),
    ]
    if hiccup is not None:
        evidence += hiccup.evidence()
    else:
        user_pct = float(hot["user_pct"])
        evidence.insert(1, Evidence("process_cpu_user", user_pct, "process_samples", since_s))
    if others_pct == others_pct:  # noqa: PLR0124  # NaN: it has no siblings
        evidence.append(Evidence("siblings_cpu_median", others_pct, "process_samples", since_s))
    where = "in its own code"
    if function:
        table = "python_stacks" if kind == "python" else "cpu_stacks"
        where = f"in {function}"
        evidence.append(Evidence("function_samples", share_pct, table, since_s, of=function))
        evidence.append(Evidence("siblings_function_samples", sibling, table, of=function))
    elif kind == UNNAMED:
        confidence = "low" if hiccup is None else "medium"
        evidence.append(Evidence("unnamed_samples", share_pct, "cpu_stacks", since_s))
    elif kind:
        confidence = "medium"
        missing += ("a function that stands out: its samples are spread over many",)
    else:
        confidence = "low" if hiccup is None else "medium"
        missing += (
            "no stacks were sampled (python_stacks, cpu_stacks): the function is not known",
        )
    window = (since_s, until_s + 0.5)
    threads = df_threads(view, subject.pid, window)
    on_thread, waits = "", "all"
    if len(threads):
        thread = threads.iloc[0]
        waits = who_waits(str(thread["kind"]))
        on_thread = f", on its {thread_label(thread.to_dict())}"
        evidence.append(
            Evidence(
                "thread_samples",
                float(thread["share_pct"]),
                "cpu_stacks",
                since_s,
                of=thread_label(thread.to_dict()),
            )
        )
    native = df_flame(view, pid=subject.pid, kind="native", window_s=window)
    jvm = jvm_name(subject.command, subject.pid, is_alive=view.is_attached)
    sampled = zip(native["stack"], native["sample_count"], strict=True)
    advice = naming_advice(sampled, jvm, subject.command)
    if advice is not None:
        missing += (advice.sentence,)
    name = str(subject)
    stalled = signs.stalled_count if signs.first_stalled_s >= since_s - 0.5 else 0
    if is_server_full(signs):
        stalled = 0  # a full worker strands connections whether this one is hot or not
    elif hiccup is not None:
        stalled = max(stalled, hiccup.gap.failed_count)
    harm = f"; {hiccup.harm}" if hiccup is not None else ""
    spent_s = cpu_pct / 100 * (until_s - since_s)
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side=side_of_role(subject.role),
        subject=subject,
        first_s=since_s,
        last_s=until_s,
        evidence=tuple(evidence),
        explanation=(
            f"{capitalised(name)} used {cpu_pct:.0f} % of a core for "
            f"{until_s - since_s:.1f} s, {share_pct:.0f} % of its samples {where}"
            if function
            else f"{capitalised(name)} used {cpu_pct:.0f} % of a core for "
            f"{until_s - since_s:.1f} s{_beside(signs)}"
        )
        + f"{on_thread}. {_WHILE_IT_RUNS[waits]}"
        + (f" {capitalised(hiccup.harm)}." if hiccup is not None else "")
        + (f" {advice.sentence}." if advice is not None else ""),
        fix=(
            *_naming_fix(advice),
            Fix(
                f"move {function or 'the work'} off the event loop (a thread, a process, a queue)"
                if waits == "all"
                else f"make {function or 'the work'} cheaper, or move it to another host",
                f"gives back about {spent_s:.1f} s of CPU of this run; the worker falls from "
                f"{cpu_pct:.0f} % to about {max(0.0, cpu_pct * (1 - share_pct / 100)):.0f} %",
            ),
        ),
        at_connections=view.open_count_at(since_s),
        confidence=confidence,
        missing=missing,
        sentence=f"{capitalised(name)} was at {cpu_pct:.0f} % of a core {where}{harm}",
        explained_count=stalled,
    )


_WHILE_IT_RUNS = {
    "all": "While it runs, none of its connections is served.",
    "own": "While it runs, that thread serves no connection.",
    "none": "It serves no connection itself: it takes the core from the threads that do.",
}


def _naming_fix(advice: NamingAdvice | None) -> tuple[Fix, ...]:
    commands = advice.commands if advice is not None else ()
    return tuple(
        Fix(command, "the next run names the functions that the time goes to")
        for command in commands
    )
