"""``waits-for-slot``: connections are accepted, then wait for a thread, a lock or another process.

Proof: connections of a process that it accepted and never read, or read and never answered, while
it is on no full core; and what its threads wait for meanwhile: the answer of another address or of
a name server, a connection that each of them serves, a lock.
Told apart from ``own-limit``: there nobody waits for anything but events, and the number is fixed.
From ``hot-worker-code``: no CPU is used. From ``worker-blocked``: it is not the event loop's own
thread that waits, or that one waits for a single client. From ``upgrade-unanswered``: others are
answered, only late or not all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, capitalised
from analysis.frames.run_view import RunView
from analysis.server import fates
from analysis.server.fates import Stuck
from analysis.server.own_limits import name_limit
from analysis.server.thread_waits import (
    ThreadWait,
    blocking_wait,
    is_held_up,
    is_taken_pool,
    main_wait,
    thread_waits,
)
from analysis.signs.limit_met import is_harmed_by_waiting, met_limits
from analysis.signs.room_left import unserved_count
from analysis.signs.signs import Signs
from analysis.stats.remembered import remembered

CAUSE = Cause(
    id="waits-for-slot",
    line="connections are accepted, then wait for a thread, a lock or another process",
    effect=Effect.STOPS_SERVING,
    follows_from=(
        "own-limit",
        Effect.FILLS_DESCRIPTORS,
    ),
)

_LATE_S = 1.0


def find(signs: Signs) -> list[Finding]:
    """One finding for each process of the deepest tier whose connections wait."""
    found = _waiting(signs)
    pids = fates.deepest(signs.view, found)
    served = sum(found[pid][0].answered_count for pid in pids)
    return [_finding(signs, *found[pid], _Siblings(len(pids), served)) for pid in pids]


@dataclass(frozen=True, slots=True)
class _Siblings:
    """Processes whose connections wait likewise.

    Attributes:
        count: How many, this one included.
        served_count: Connections that they served together.
    """

    count: int
    served_count: int


def pids_of_one_client(signs: Signs) -> set[int]:
    """Processes whose only thread waits for one client of them: no loop of events stands still."""
    return {pid for pid, (_, wait) in _waiting(signs).items() if wait is not None and wait.is_main}


@remembered
def _waiting(signs: Signs) -> dict[int, tuple[Stuck, ThreadWait | None]]:
    """By pid: whose connections wait, and what its threads wait for."""
    view = signs.view
    if not view.is_foreign or not is_harmed_by_waiting(signs, _late_count(signs)):
        return {}
    found: dict[int, tuple[Stuck, ThreadWait | None]] = {}
    limited = {met.pid for met in met_limits(signs)}
    for each in fates.stuck(view):
        if each.count < fates.LEAST_COUNT or signs.is_busy(each.pid, each.first_s, each.last_s):
            continue
        wait = blocking_wait(view, each)
        if wait is not None and wait.is_main and wait.kind != "own_connection":
            continue  # the event loop itself stands still: worker-blocked
        if wait is None and (each.pid in limited or not _waits_inside(signs, each)):
            continue
        found[each.pid] = each, wait
    return found | _one_at_a_time(view)


def _one_at_a_time(view: RunView) -> dict[int, tuple[Stuck, ThreadWait | None]]:
    """Workers of a server that serve one connection each, and wait for its client in their code.

    Their one thread rests wherever their library waits for what the client says, in a lock too,
    while others stand in the queue that they share. One alone may be a loop that stands still.
    """
    for queue in fates.standing_queues(view):
        pids = queue.sharing_pids
        peaks = fates.peak_counts(view, "server")
        if (
            queue.is_moving
            or len(pids) < _WORKERS_LEAST_COUNT
            or any(peaks.get(pid, 0) > 1 for pid in pids)
        ):
            continue
        if any(fates.accepted_count(view, pid) != 1 for pid in pids):
            continue
        waits = {pid: main_wait(view, pid) for pid in pids}
        stood = Stuck(0, 0, 0, 1, queue.first_s, queue.last_s, queue.count)
        return {
            pid: (replace(stood, pid=pid), replace(wait, kind="own_connection", is_main=True))
            for pid, wait in waits.items()
            if wait is not None
        }
    return {}


_WORKERS_LEAST_COUNT = 2


def _late_count(signs: Signs) -> int:
    connections = signs.view.connections
    wait_s = connections["established_s"] - connections["start_s"]
    return int((wait_s >= _LATE_S).sum())


def _waits_inside(signs: Signs, each: Stuck) -> bool:
    """Requests were read, others were answered, and no thread waits: the program queues them.

    A proxy that waits for an answer waits for what is behind it, which is looked at itself: only
    where that takes whatever comes and has time is it a pool of the one in front that is short.
    """
    view = signs.view
    is_read = each.unanswered_count > max(each.unread_count, each.unaccepted_count)
    if not is_read or not each.answered_count or is_held_up(view, each.pid):
        return False
    return all(_has_time(signs, each, pid) for pid in fates.backend_pids(view))


def _has_time(signs: Signs, each: Stuck, pid: int) -> bool:
    """Nothing was seen of a process behind another that keeps it from answering."""
    view = signs.view
    blocked = view.frames["blocked_samples"]
    held_up = {stuck.pid for stuck in fates.stuck(view)}
    held_up |= {queue.pid for queue in fates.standing_queues(view)}
    return (
        pid not in held_up
        and not signs.is_busy(pid, each.first_s, each.last_s)
        and not (blocked["pid"] == pid).any()
        and not (signs.errors["pid"] == pid).any()
    )


def _finding(signs: Signs, each: Stuck, wait: ThreadWait | None, siblings: _Siblings) -> Finding:
    view = signs.view
    subject = view.subject(each.pid)
    name = capitalised(str(subject))
    served = each.answered_count
    evidence = [Evidence("served_connections", served, "open_fates", each.first_s)]
    if each.unread_count:
        evidence.append(
            Evidence("unread_connections", each.unread_count, "open_fates", each.first_s)
        )
    if each.unanswered_count:
        evidence.append(
            Evidence("unanswered_connections", each.unanswered_count, "open_fates", each.first_s)
        )
    if each.unaccepted_count:
        of = f"port {', '.join(map(str, view.server_ports))}"
        evidence.append(
            Evidence("standing_queue", each.unaccepted_count, "open_fates", each.first_s, of=of)
        )
    if wait is not None:
        of = _waits_in(wait)
        evidence.append(Evidence("waiting_threads", wait.thread_count, "thread_waits", of=of))
    rate = _rate_per_s(signs, each)
    if rate is not None:
        evidence.append(Evidence("served_rate", rate, "connections", each.first_s))
    cpu_pct = signs.cpu_pct_of(each.pid, each.first_s, each.last_s)
    used = ""
    if cpu_pct is not None:
        evidence.append(Evidence("process_cpu", cpu_pct, "process_samples", each.first_s))
        used = f", at {cpu_pct:.0f} % of a core"
    confidence, missing = signs.trust("open_fates", "thread_waits", "process_samples")
    if wait is None:
        confidence = "medium"
        missing += ("what they wait for: no thread of the process waits for it",)
    elif _is_few(each, wait) and confidence == "high":
        confidence = "medium"
    waiting = _waiting_words(each)
    held = f"{served:,} connection{'s' if served != 1 else ''}"
    if siblings.count > 1:
        evidence.append(
            Evidence("served_together", siblings.served_count, "open_fates", each.first_s)
        )
        held += f", and {siblings.served_count:,} together with {siblings.count - 1} other"
        held += "s like it," if siblings.count > 2 else " like it,"
    holder = _holder(view, each, wait)
    why = _why(wait) + (_behind(view) if wait is None else "")
    if holder is not None:
        why += f", while one thread waits in {holder.syscall}{_what(holder)}, as it seems with it"
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="server",
        subject=subject,
        first_s=each.first_s,
        last_s=each.last_s,
        evidence=tuple(evidence),
        explanation=(
            f"{name} served {held} while {waiting}{used}. {capitalised(why)}. More "
            "cores or descriptors do not help: nothing of them is short."
        ),
        fix=_fixes(view, each, wait, holder, siblings),
        at_connections=served,
        confidence=confidence,
        missing=missing,
        sentence=f"{name} served {held} while {waiting}{used}: {why}",
        explained_count=unserved_count(signs),
    )


def _is_few(each: Stuck, wait: ThreadWait) -> bool:
    """Requests may as well wait for something else than these threads do."""
    if wait.kind in ("sleep", "pipe", "call"):
        return wait.thread_count < each.unanswered_count
    return wait.thread_count == 1 and not wait.is_main


def _behind(view: RunView) -> str:
    """Who works behind it, and what threads of those do, for people."""
    told = []
    for pid in fates.backend_pids(view)[:_BEHIND_MOST_COUNT]:
        waits = [wait for wait in thread_waits(view, pid) if is_taken_pool(wait)]
        told.append(f"{view.subject(pid)}" + (f", where {_why(waits[0])}" if waits else ""))
    return f", or for an answer of {' or of '.join(told)}" if told else ""


_BEHIND_MOST_COUNT = 2


def _waiting_words(each: Stuck) -> str:
    parts = []
    if each.unread_count:
        parts.append(f"{each.unread_count:,} were accepted and never read")
    if each.unanswered_count:
        parts.append(f"{each.unanswered_count:,} were read and not answered")
    if each.unaccepted_count:
        parts.append(f"{each.unaccepted_count:,} stood in its accept queue")
    return " and ".join(parts)


def _waits_in(wait: ThreadWait) -> str:
    where = {"own_connection": "a connection of their own", "lock": "a lock"}.get(wait.kind, "")
    if wait.kind == "name_server":
        where = f"the name server {wait.address}"
    return f"{wait.syscall} for {where or wait.address or wait.kind}"


def _why(wait: ThreadWait | None) -> str:
    if wait is None:
        return "its event loop is free and the requests wait inside of the program"
    many = f"{wait.thread_count:,} thread{'s' if wait.thread_count != 1 else ''}"
    waits = "waits" if wait.thread_count == 1 else "wait"
    if wait.kind == "name_server":
        return f"{many} of its pool {waits} in {wait.syscall} for the name server {wait.address}"
    if wait.kind == "own_connection":
        if wait.is_main:
            return f"its thread waits in {wait.syscall} for one client, and serves no other"
        return f"{many}, all that it has for them, are held by one connection each"
    if wait.kind == "lock":
        return f"{many} {waits} for a lock, or for something that is handed out under one"
    if wait.kind == "sleep":
        return f"{many} of it sleep{'s' if wait.thread_count == 1 else ''} in {wait.syscall}"
    if wait.kind in ("pipe", "call"):
        what = " for the other end of a pipe" if wait.kind == "pipe" else ""
        return f"{many} of it {waits} in {wait.syscall}{what}"
    return f"{many} of it {waits} in {wait.syscall} for {wait.address}"


def _rate_per_s(signs: Signs, each: Stuck) -> float | None:
    span_s = each.last_s - each.first_s
    if signs.view.is_attached or span_s <= 0:
        return None
    established = signs.view.connections["established_s"]
    return float(established.between(each.first_s, each.last_s).sum()) / span_s


def _holder(view: RunView, each: Stuck, wait: ThreadWait | None) -> ThreadWait | None:
    """The one thread that waits for something while the others wait for a lock."""
    if wait is None or wait.kind != "lock":
        return None
    others = [
        other
        for other in thread_waits(view, each.pid)
        if other.kind in _HELD_UP_BY and other.thread_count == 1 and not other.is_main
    ]
    return others[0] if len(others) == 1 else None


_HELD_UP_BY = ("name_server", "remote", "unix", "sleep", "own_connection")


def _what(wait: ThreadWait) -> str:
    known = wait.address or ("its client" if wait.kind == "own_connection" else "")
    return f" for {known}" if known else ""


def _fixes(
    view: RunView,
    each: Stuck,
    wait: ThreadWait | None,
    holder: ThreadWait | None,
    siblings: _Siblings,
) -> tuple[Fix, ...]:
    served = each.answered_count
    effect = f"the connections beyond {served:,} are served"
    if wait is None:
        look = Fix("look for the pool or limit that requests queue for in the application", effect)
        facts, wanted = view.process_facts(each.pid), max(view.target_count, served + each.count)
        known = name_limit(view.subject(each.pid).command, facts, served, 0, wanted)
        if known is not None:
            return Fix(f"{known.raise_it}, as it seems", effect), look
        behind = [
            Fix(
                f"{_stacks_command(view, pid)}  # {_when(view)}: what {view.subject(pid)} does",
                "what it answers late, or not",
            )
            for pid in fates.backend_pids(view)[:_BEHIND_MOST_COUNT]
        ]
        return look, *behind
    if wait.kind == "name_server":
        return (
            Fix(
                "UV_THREADPOOL_SIZE=64  # Node; keep resolved names (a cache), or dns.resolve, "
                "which takes no thread",
                effect,
            ),
            Fix("cat /etc/resolv.conf  # the name server does not answer", effect),
        )
    if wait.kind == "own_connection":
        return (_more_threads(view, each, wait, effect, siblings.count),)
    if holder is not None:
        return (
            Fix(
                f"release what {wait.thread_count:,} threads wait for before a thread that has it "
                f"waits in {holder.syscall}{_what(holder)}",
                effect,
            ),
        )
    if wait.kind == "lock":
        return (
            Fix(
                f"{_stacks_command(view, each.pid)}  # {_when(view)}: which thread does not wait "
                "for it",
                "that one has the lock; let it wait for nothing meanwhile",
            ),
            Fix("enlarge the pool (database, threads) that the requests queue for", effect),
        )
    if wait.kind in ("sleep", "pipe", "call"):
        return _larger_pool(view, each, wait, effect)
    return (
        Fix(
            f"make {wait.address} answer faster, ask it less often, or enlarge the pool of "
            f"{wait.thread_count} that waits for it",
            effect,
        ),
    )


_STACKS_OF = (
    (re.compile(r"python|gunicorn|uvicorn"), "py-spy dump --pid {pid}"),
    (re.compile(r"java"), "jstack {pid}"),
    (re.compile(r"ruby|puma"), "rbspy snapshot --pid {pid}"),
)
_STACKS = "gdb -p {pid} -batch -ex 'thread apply all backtrace'"


def _when(view: RunView) -> str:
    return "while it stands" if view.is_attached else "in the next run"


def _stacks_command(view: RunView, pid: int) -> str:
    """The command that shows the stacks of all threads, as this runtime has them."""
    command = view.subject(pid).command
    shown = next((words for program, words in _STACKS_OF if program.search(command)), _STACKS)
    return shown.format(pid=pid)


def _larger_pool(view: RunView, each: Stuck, wait: ThreadWait, effect: str) -> tuple[Fix, ...]:
    """More threads for what threads are held up by, or none of them."""
    count = wait.thread_count
    wanted = max(view.target_count, each.answered_count + each.count)
    facts = view.process_facts(each.pid)
    known = name_limit(view.subject(each.pid).command, facts, count, 0, wanted)
    larger = (
        f"give the pool more than {count:,} threads  # Python: ThreadPoolExecutor(max_workers=...);"
        " Java: newFixedThreadPool(...)"
        if known is None
        else known.raise_it
    )
    without = f"wait in the event loop, not in {wait.syscall} of a thread"
    return Fix(larger, effect), Fix(without, "no request waits for a thread")


_THREADS_OF = (
    (re.compile(r"gunicorn"), "gunicorn --threads {count}, or an asynchronous worker"),
    (re.compile(r"php"), "pm.max_children = {count}  # php-fpm"),
    (re.compile(r"java"), "an executor of {count} threads, virtual threads, or NIO instead of a "
     "thread for each connection"),
    (re.compile(r"puma"), "puma --threads {count}:{count}"),
    (re.compile(r"(apache2|httpd)"), "MaxRequestWorkers {count}"),
)  # fmt: skip
"""How programs are given more threads, by what people call them."""


def _more_threads(
    view: RunView, each: Stuck, wait: ThreadWait, effect: str, process_count: int
) -> Fix:
    """As that program is told, else by the setting whose value is the number of threads.

    What is wanted is spread over all processes that are short of them.
    """
    command = view.subject(each.pid).command
    wanted = max(view.target_count // process_count, each.answered_count + each.count)
    known = name_limit(command, view.process_facts(each.pid), wait.thread_count, 0, wanted)
    in_its_code = known is not None and not known.setting and known.where != "its command line"
    if known is not None and in_its_code:
        return Fix(known.raise_it, effect)
    for program, words in _THREADS_OF:
        if program.search(command):
            return Fix(words.format(count=f"{wanted}"), effect)
    if known is not None:
        return Fix(known.raise_it, effect)
    return Fix(f"give it {wanted:,} threads, or let it serve many connections with each", effect)
