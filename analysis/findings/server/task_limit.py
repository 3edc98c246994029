"""``task-limit``: a limit on processes and threads refuses the server one more.

Proof: clone, clone3, fork or vfork returned EAGAIN to it (kernel/fork.c), and of the limits that
were read then one was used up: pids.max of its control group or of one above (which also counts its
refusals), RLIMIT_NPROC of its user, kernel.threads-max, kernel.pid_max. Where no eBPF runs, the
words of its runtime.
Told apart from ``mapping-limit``: there it is the thread's stack that finds no room, and the call
that fails is mmap with ENOMEM. EAGAIN of any other call is an answer and no limit.
"""

from __future__ import annotations

from analysis.causes import Cause
from analysis.evidence import Evidence, Finding, Fix, Subject, capitalised, times
from analysis.findings.memory import mapping_limit
from analysis.server.control_group import owner_of, tasks_command
from analysis.signs.met_limits import TASKS, MetLimit, met_limit, refused, wanted_count
from analysis.signs.signs import Signs

CAUSE = Cause(
    id="task-limit",
    line="a limit on processes and threads refuses one more",
    decide="cat pids.events of its control group, and ulimit -u of its user: which is met",
)

EAGAIN = 11
_CALLS = ("clone", "clone3", "fork", "vfork")
_MOST_PIDS_COUNT = 4_194_304  # include/linux/threads.h, PID_MAX_LIMIT


def find(signs: Signs) -> list[Finding]:
    """One finding about the first server process that was refused, or none."""
    rows = refused(signs.errors, _CALLS, EAGAIN, before_s=signs.view.stop_s)
    if len(rows):
        row = rows.iloc[0]
        pid, first_s, last_s = int(row["pid"]), float(row["first_s"]), float(row["last_s"])
        count, call = int(row["event_count"]), str(row["syscall"])
        evidence = [Evidence("eagain_calls", count, "failing_syscalls", first_s, of=call)]
        limit = met_limit(signs.view, pid, TASKS)
        return [_finding(signs, pid, (first_s, last_s), evidence, limit, count, call)]
    said = signs.words_of("task-limit")
    # A runtime says the same of a thread whose stack found no room.
    if not said or mapping_limit.limited_pids(signs):
        return []
    count = sum(each.count for each in said)
    evidence = [Evidence("log_lines", count, "server_words", said[0].first_s)]
    span_s = said[0].first_s, max(each.last_s for each in said)
    return [_finding(signs, said[0].pid, span_s, evidence, None, count, "")]


def _finding(
    signs: Signs,
    pid: int,
    span_s: tuple[float, float],
    evidence: list[Evidence],
    limit: MetLimit | None,
    count: int,
    call: str,
) -> Finding:
    view = signs.view
    subject = view.subject(pid) if pid else Subject("server")
    first_s, last_s = span_s
    at_connections = view.open_count_at(first_s)
    evidence = [*evidence, Evidence("connections_open", at_connections, "connections", first_s)]
    confidence, missing = signs.trust("limit_readings") if call else ("medium", ())
    refusal = (
        f"{call} returned EAGAIN {times(count)}" if call else f"its log says so {times(count)}"
    )
    if limit is None:
        confidence = "medium" if call else "low"
        missing += ("which limit it was: none of those that were read was used up",)
        whose = "a limit on processes and threads"
    else:
        evidence += limit.evidence(first_s)
        whose = f"the {limit.capacity:,} {_whose(limit)}"
    name = capitalised(str(subject))
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="server",
        subject=subject,
        first_s=first_s,
        last_s=max(first_s, last_s),
        evidence=tuple(evidence),
        explanation=(
            f"{name} wanted one more process or thread at {at_connections:,} connections and was "
            f"refused: {refusal}. {capitalised(whose)} {'are' if limit else 'is'} in use. "
            "A process and each of its threads count alike."
        ),
        fix=_fixes(signs, subject, limit, at_connections),
        at_connections=at_connections,
        confidence=confidence,
        missing=missing,
        sentence=f"{name} could have no further process or thread at {at_connections:,} "
        f"connections: {whose} {'were' if limit else 'was'} in use, and {refusal}",
        explained_count=count if view.is_attached else signs.harmed_since(first_s),
    )


def _whose(limit: MetLimit) -> str:
    if limit.limit == "group_tasks_count":
        return f"tasks of {owner_of(limit.scope)} (pids.max)"
    if limit.limit == "user_tasks_count":
        return f"tasks of {limit.scope} (RLIMIT_NPROC)"
    return limit.name


def _fixes(
    signs: Signs, subject: Subject, limit: MetLimit | None, at_connections: int
) -> tuple[Fix, ...]:
    pool = Fix(
        "serve many connections with each thread: a pool of a fixed size, or an event loop",
        "then the number of threads does not follow the number of connections",
    )
    if limit is None:
        who = subject.pid or "PID"
        return (
            Fix(
                f"cat /proc/{who}/limits /proc/{who}/cgroup /proc/sys/kernel/threads-max",
                "shows the limits that hold for it",
            ),
            pool,
        )
    wanted = wanted_count(limit.used, limit.capacity, signs.view.target_count, at_connections)
    effect = f"the limit moves from {limit.capacity:,} to {wanted:,}; {limit.used:,} were in use"
    if limit.limit == "group_tasks_count":
        return (Fix(tasks_command(limit.scope, wanted), effect), pool)
    if limit.limit == "user_tasks_count":
        if signs.view.is_attached:
            command = f"prlimit --pid {subject.pid} --nproc={wanted}:{wanted}"
        else:
            command = f"ulimit -u {wanted}  # in the shell that starts the server"
        unit = Fix(f"systemctl edit NAME.service  # [Service] LimitNPROC={wanted}", "for a service")
        return (Fix(command, effect), unit, pool)
    setting = "kernel.threads-max" if limit.limit == "host_tasks_count" else "kernel.pid_max"
    if setting == "kernel.pid_max":
        wanted = min(wanted, _MOST_PIDS_COUNT)
    if wanted <= limit.capacity:
        return (pool,)
    return (Fix(f"sysctl -w {setting}={wanted}", effect), pool)
