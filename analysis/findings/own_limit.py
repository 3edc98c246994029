"""``own-limit``: the server, or a process behind it, lets in so many connections and no more.

Proof: a number. Up to it connections are served, of the attempts begun after it hardly any is, and
the process closes them at once, or leaves them in its accept queue, or takes them and reads
nothing, while it has descriptors and CPU to spare and no call of it fails for want of anything.
The setting is named where its value was found (``analysis/own_limits.py``).
Told apart from ``fd-limit-process``: descriptors are left and no accept returned EMFILE. From
``accept-queue-overflow``, ``hot-worker-code`` and ``worker-blocked``: the process is idle, and the
number does not grow with time. From ``waits-for-slot``: no thread waits for somebody else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from analysis import fates
from analysis.evidence import Evidence, Finding, Fix, capitalised
from analysis.own_limits import FD_SETSIZE, NamedLimit, name_limit
from analysis.run_view import RunView
from analysis.signs import EMFILE, ENFILE, Signs
from analysis.thread_waits import blocking_wait, main_wait, some_thread_polls, thread_waits

_FULL_USE = 0.98
_LET_IN_SHARE = 0.1
"""Of the attempts begun after the limit was met, so many may still get in: some were on their way,
or took the place of one that left."""
_ON_ITS_WAY_S = 0.1
_PARENTS_CALLS = ("wait4", "waitid")
_WANTS = (EMFILE, ENFILE, 12, 11)  # ENOMEM; EAGAIN of clone


@dataclass(frozen=True, slots=True)
class _Met:
    """A process that let nobody in any more.

    Attributes:
        pid: Who.
        how: What it did with the rest, for people.
        first_s: When it began.
        last_s: When it was last seen.
        let_in: Connections that it had let in.
        evidence: What proves it.
        explained: Attempts that ended or wait so.
        sharing_count: Processes that share the listener and have stopped together, 0 for one alone.
        shared_count: Connections that they had let in together.
        is_rate: It says that its clients come too fast, not that they are too many.
    """

    pid: int
    how: str
    first_s: float
    last_s: float
    let_in: int
    evidence: tuple[Evidence, ...]
    explained: int
    sharing_count: int = 0
    shared_count: int = 0
    is_rate: bool = False


def find(signs: Signs) -> list[Finding]:
    """One finding for each process of the deepest tier that met its own limit."""
    view = signs.view
    if not view.is_foreign:
        return []
    met = (*_closing(signs), *_queueing(signs), *_silent(signs), *_refusing(signs))
    first: dict[int, _Met] = {}
    for each in met:
        if _could_have(signs, each):
            first.setdefault(each.pid, each)
    return [_finding(signs, first[pid]) for pid in fates.deepest(view, first)]


def _closing(signs: Signs) -> list[_Met]:
    """Processes that close what they accept, at once."""
    view = signs.view
    connections = view.connections
    ended = connections[connections["is_failed"] & connections["close_kind"].isin(["eof", "rst"])]
    found = []
    for each in fates.closed_at_once(view):
        harmed = each.count if view.is_attached else len(ended)
        if harmed < fates.LEAST_COUNT or each.count < harmed // 2:
            continue
        evidence = Evidence("closed_at_once", each.count, "connection_fates", each.first_s)
        found.append(
            _Met(
                each.pid,
                f"closed the other {each.count:,} at once",
                each.first_s,
                each.last_s,
                max(0, each.accepted_count - each.count),
                (evidence,),
                min(each.count, harmed),
            )
        )
    return found


def _queueing(signs: Signs) -> list[_Met]:
    """Processes that have stopped accepting, and are idle."""
    view = signs.view
    found = []
    waiting = {each.pid for each in fates.stuck(view) if blocking_wait(view, each)}
    for queue in fates.standing_queues(view):
        accepted = fates.accepted_count(view, queue.pid)
        if not queue.pid or accepted <= 0 or not is_harmed_by_waiting(signs):
            continue
        if queue.pid in waiting:  # what it took already waits for somebody else
            continue
        if not _is_free(signs, queue.pid, queue.first_s, queue.last_s):
            continue
        since_s = fates.last_accept_s(view, queue.pid)
        begun_s = queue.first_s if since_s is None else min(since_s, queue.first_s)
        evidence = [
            Evidence(
                "standing_queue",
                queue.count,
                "unix_listeners" if queue.is_unix else "open_fates",
                queue.first_s,
                of=queue.place,
            ),
            Evidence("time_without_accept", queue.last_s - begun_s, "connection_fates", begun_s),
        ]
        found.append(
            _Met(
                queue.pid,
                f"then accepted nobody, while {queue.count:,} waited in the queue of {queue.place}",
                begun_s,
                queue.last_s,
                accepted,
                tuple(evidence),
                unserved_count(signs),
                len(queue.sharing_pids),
                _shared_count(signs, queue),
            )
        )
    return found


def _shared_count(signs: Signs, queue: fates.StandingQueue) -> int:
    """What all who share a queue took of it, 0 where nobody shares it.

    A server that forks as it fills has processes that were too young to be counted.
    """
    if not queue.sharing_pids:
        return 0
    taken = sum(fates.accepted_count(signs.view, pid) for pid in queue.sharing_pids)
    return taken if signs.view.is_attached else max(taken, signs.view.peak_count)


def _silent(signs: Signs) -> list[_Met]:
    """Processes that go on accepting and read nothing of what they accept, with an idle loop."""
    view = signs.view
    found = []
    for each in fates.stuck(view):
        is_unread = each.unread_count >= max(fates.LEAST_COUNT, each.unanswered_count)
        if (
            not is_unread
            or not is_harmed_by_waiting(signs)
            or blocking_wait(view, each) is not None
        ):
            continue
        if not each.answered_count or not _is_free(signs, each.pid, each.first_s, each.last_s):
            continue
        evidence = Evidence("unread_connections", each.unread_count, "open_fates", each.first_s)
        found.append(
            _Met(
                each.pid,
                f"took {each.unread_count:,} more and read nothing of them",
                each.first_s,
                each.last_s,
                each.answered_count,
                (evidence,),
                unserved_count(signs),
            )
        )
    return found


def _refusing(signs: Signs) -> list[_Met]:
    """A process that answers with an error of its own, and asks nobody behind it."""
    view = signs.view
    connections = view.connections
    refused = connections[connections["is_failed"] & (connections["close_kind"] == "protocol")]
    events = view.frames["events"]
    told = [str(each) for each in events[events["event"] == "upgrade_refused"]["detail"]]
    statuses = [int(match[1]) for text in told if (match := _TOO_MANY.match(text))]
    serving = [pid for pid in fates.servers(view) if fates.accepted_count(view, pid) > 0]
    fronts = [pid for pid in serving if view.subject(pid).role != "backend"]
    failed = signs.errors[(signs.errors["syscall"] == "connect") & signs.errors["pid"].isin(fronts)]
    established = int(connections["established_s"].notna().sum())
    if len(refused) < fates.LEAST_COUNT or not statuses or len(fronts) != 1 or len(failed):
        return []
    first_s, last_s = float(refused["closed_s"].min()), float(refused["closed_s"].max())
    if not established or not _is_free(signs, fronts[0], first_s, last_s):
        return []
    evidence = (
        Evidence("handshakes_refused", len(refused), "connections", first_s),
        Evidence("http_status", statuses[0], "events", first_s),
    )
    how = f"answered the other {len(refused):,} with HTTP {statuses[0]}"
    return [
        _Met(
            fronts[0],
            how,
            first_s,
            last_s,
            established,
            evidence,
            len(refused),
            is_rate=statuses[0] == _TOO_MANY_REQUESTS,
        )
    ]


_TOO_MANY_REQUESTS = 429
"""RFC 6585 section 4: too many requests in a given amount of time."""
_TOO_MANY = re.compile(r"HTTP (429|500|503)\b")


def unserved_count(signs: Signs) -> int:
    """Attempts that failed or waited to the end."""
    return signs.view.failed_count + signs.view.waiting_count


def is_harmed_by_waiting(signs: Signs, late_count: int = 0) -> bool:
    """Somebody was kept out, or came late; of real clients nobody says it."""
    return signs.view.is_attached or unserved_count(signs) + late_count >= fates.LEAST_COUNT


def _is_free(signs: Signs, pid: int, first_s: float, last_s: float) -> bool:
    """The process could serve: it needs no full core, and its first thread waits for events."""
    if signs.is_busy(pid, first_s, last_s):
        return False
    view = signs.view
    main = main_wait(view, pid)
    if main is None:
        return True
    if main.kind == "sleep":
        return _is_at_select(_descriptors(signs, pid))
    if main.kind not in ("lock", "pipe") and main.syscall not in _PARENTS_CALLS:
        return False
    if main.syscall.startswith("write"):
        return False  # nobody reads what it says
    # A thread for each connection, and the one that accepts waits until one of them is done; or
    # the first thread has nothing to do but to wait for its parent's word, and another one has the
    # events.
    held = sum(
        wait.thread_count
        for wait in thread_waits(view, pid)
        if wait.kind == "own_connection" and wait.share > 0.5
    )
    return held >= fates.LEAST_COUNT or some_thread_polls(view, pid)


def _is_at_select(descriptors: int) -> bool:
    return FD_SETSIZE - 3 <= descriptors <= FD_SETSIZE + 3


def _descriptors(signs: Signs, pid: int) -> int:
    """Most descriptors that a process had open, 0 when not known."""
    samples = signs.view.frames["process_samples"]
    mine = samples["fd_count"][(samples["pid"] == pid) & (samples["fd_count"] > 0)]
    return int(mine.max()) if len(mine) else 0


def _could_have(signs: Signs, each: _Met) -> bool:
    """Nothing was missing that the kernel gives, and the number did not grow."""
    view = signs.view
    errors = signs.errors
    mine = errors[(errors["pid"] == each.pid) & errors["errno"].isin(_WANTS)]
    if (mine["syscall"] != "connect").any():
        return False
    own = signs.descriptors[signs.descriptors["pid"] == each.pid]
    if len(own) and float(own["use"].fillna(0).max()) >= _FULL_USE:
        return False
    if view.is_attached:
        return True
    tried, let_in = _after(signs, each.first_s)
    return let_in <= _LET_IN_SHARE * max(fates.LEAST_COUNT, tried)


def _after(signs: Signs, since_s: float) -> tuple[int, int]:
    """Attempts begun after a moment, and how many of them got in."""
    connections = signs.view.connections
    later = connections[connections["start_s"] > since_s + _ON_ITS_WAY_S]
    return len(later), int(later["established_s"].notna().sum())


def _finding(signs: Signs, met: _Met) -> Finding:
    view = signs.view
    subject = view.subject(met.pid)
    name = capitalised(str(subject))
    descriptors = _descriptors(signs, met.pid)
    wanted = max(view.target_count, met.let_in + met.explained)
    facts = view.process_facts(met.pid)
    known = name_limit(
        subject.command, facts, met.let_in, descriptors, wanted, shared_count=met.shared_count
    )
    who, held = name, met.let_in
    if met.shared_count and (known is None or known.is_of_all):
        held = met.shared_count
        others = met.sharing_count - 1
        who += f" and {others:,} other" + ("s" if others > 1 else "") + " that share its listener"
    tried, let_in = _after(signs, met.first_s)
    evidence = [
        Evidence("let_in", held, met.evidence[0].table, met.first_s),
        *met.evidence,
    ]
    if not view.is_attached:
        evidence += [
            Evidence("attempts_after", tried, "connections", met.first_s),
            Evidence("attempts_after_let_in", let_in, "connections", met.first_s),
        ]
    if known is not None:
        of = known.setting or known.where
        evidence.append(Evidence("limit_setting", known.value, "manifest", of=of))
    limits = view.frames["processes"]
    soft = limits["nofile_soft_count"][limits["pid"] == met.pid]
    left = ""
    if descriptors and len(soft):
        evidence += [
            Evidence("descriptors_open", descriptors, "process_samples"),
            Evidence("descriptor_limit", int(soft.iloc[0]), "processes"),
        ]
        left = f", with {descriptors:,} of {int(soft.iloc[0]):,} descriptors in use"
    cpu_pct = signs.cpu_pct_of(met.pid, met.first_s, met.last_s)
    if cpu_pct is not None:
        evidence.append(Evidence("process_cpu", cpu_pct, "process_samples", met.first_s))
        left += f" and {cpu_pct:.0f} % of a core"
    limit = _words(known)
    confidence, missing = signs.trust("connection_fates", "open_fates", "process_samples")
    return Finding(
        cause="own-limit",
        severity="warning",
        side="server",
        subject=subject,
        first_s=met.first_s,
        last_s=max(met.first_s, met.last_s),
        evidence=tuple(evidence),
        explanation=(
            f"{who} let in {held:,} connections and {met.how}{left}. No call of it failed "
            f"for want of descriptors or memory: the limit is its own{limit}."
        ),
        fix=(_fix(known, str(subject), held), *_slower(view, met)),
        at_connections=held,
        confidence=confidence,
        missing=missing,
        sentence=f"{who} let in {held:,} connections and {met.how}: a limit of its own"
        f"{limit}{left}",
        explained_count=met.explained,
    )


def _slower(view: RunView, met: _Met) -> tuple[Fix, ...]:
    """What the clients can do where the limit is one on their rate."""
    if not met.is_rate or view.is_attached:
        return ()
    seconds = max(0.1, view.hold.start_s - view.ramp.start_s)
    rate = max(1, min(int(met.let_in / seconds), met.let_in))
    return (
        Fix(
            f"profile-run --ramp {rate} --retry 10  # HTTP 429 limits how fast clients come",
            "who is refused comes back later, as the status asks",
        ),
    )


def _words(known: NamedLimit | None) -> str:
    if known is None:
        return ""
    if not known.setting:
        return f", as it seems the {known.value:,} of {known.where}"
    return f", {known.setting} {known.value:,} ({known.where})"


def _fix(known: NamedLimit | None, name: str, let_in: int) -> Fix:
    if known is not None:
        return Fix(known.raise_it, f"more than {let_in:,} connections are let in")
    return Fix(
        f"raise the limit on connections that {name} sets itself  # none of its options and "
        f"configuration files names {let_in:,}",
        f"more than {let_in:,} connections are let in",
    )
