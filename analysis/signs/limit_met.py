"""How servers let nobody in any more although nothing is short: what is seen of each way.

Frames in, small records out; the finder of ``own-limit`` makes a finding of them. Pure.
"""

from __future__ import annotations

import re

import pandas as pd

from analysis.evidence import Evidence
from analysis.frames.run_view import RunView
from analysis.server import fates
from analysis.server.closed_at_once import ClosedAtOnce, closed_at_once, let_in_after
from analysis.server.own_limits import FD_SETSIZE
from analysis.server.thread_waits import (
    accepts_to_the_end,
    blocking_wait,
    main_wait,
    some_thread_polls,
    thread_waits,
)
from analysis.signs.closed_after_upgrade import closed_after_upgrade
from analysis.signs.closed_behind import closed_behind
from analysis.signs.room_left import (
    ON_ITS_WAY_S,
    Met,
    could_have,
    descriptors_of,
    held_count,
    is_at_select,
    unserved_count,
)
from analysis.signs.signs import Signs
from analysis.stats.remembered import remembered
from probes.contract.schema import SERVER_ROLES

_LAST_WORDS_S = 2.0
_STANDS_S = 1.0
"""So long nobody is let in before it is said that a queue stands."""
_AT_ONCE_S, _MOST_SHARE = 0.5, 0.9
"""Of those that the server closed so many were so soon after their connect: it asked nobody."""
_AROUND_SELECT = 20
"""Descriptors of its own: files, its listener, a pipe or two."""
_SIGABRT = 6
_PARENTS_CALLS = ("wait4", "waitid")
_FATAL = ("runtime-heap-limit", "task-limit", "mapping-limit")


@remembered
def met_limits(signs: Signs) -> list[Met]:
    """All who let nobody in any more, of those that could have; one process may be there twice."""
    met = (
        *_dying(signs),
        *_deaf(signs),
        *_closing(signs),
        *_closing_as_clients_saw(signs),
        *closed_after_upgrade(signs),
        *closed_behind(signs),
        *_queueing(signs),
        *_silent(signs),
        *_refusing(signs),
    )
    return [each for each in met if each.is_told or could_have(signs, each)]


def _dying(signs: Signs) -> list[Met]:
    """Processes that end as soon as they have one connection more than they can have.

    They said so (``own-limit`` of ``analysis/server/server_words.py``), or their C library ended
    them at the first descriptor that select(2) cannot name (glibc, debug/fdelt_chk.c: SIGABRT).
    """
    found = []
    for end in signs.process_ends:
        held = max(end.held_count, end.lost_count)
        if end.is_orderly or held < fates.LEAST_COUNT:
            continue
        said = [
            each
            for each in signs.words_of("own-limit")
            if each.pid in (0, end.pid) and abs(each.first_s - end.ended_s) <= _LAST_WORDS_S
        ]
        is_at_select = -_AROUND_SELECT <= held - FD_SETSIZE < 0
        if not said and not (is_at_select and end.signal == _SIGABRT):
            continue
        by_select = is_at_select or any("select" in each.line for each in said)
        evidence = Evidence("connections_held", held, "live_samples", end.ended_s)
        found.append(
            Met(
                end.pid,
                "ended at the next one",
                end.first_lost_s,
                end.ended_s,
                held,
                (evidence,),
                signs.harmed_since(end.first_lost_s),
                descriptors=FD_SETSIZE if by_select else 0,
                is_told=bool(said),
            )
        )
    return found


def _deaf(signs: Signs) -> list[Met]:
    """Processes that have closed their listening socket, and go on serving whom they have."""
    view = signs.view
    connections = view.connections
    is_refused = connections["is_failed"] & (connections["close_kind"] == "refused")
    refused = connections[is_refused]
    ended = {end.pid for end in signs.process_ends}
    pids = [pid for pid in fates.servers(view) if fates.let_in_count(view, pid) > 0]
    fronts = [pid for pid in pids if view.subject(pid).role != "backend"]
    if len(refused) < fates.LEAST_COUNT or not fronts or ended:
        return []
    if any(signs.words_of(cause) for cause in _FATAL):
        return []  # the thread that accepted has ended of it, and its process goes on
    first_s = float(refused["start_s"].min())
    came = connections["connected_s"] <= first_s + ON_ITS_WAY_S
    let_in = int((came & connections["established_s"].notna()).sum())  # some answered later
    if let_in < fates.LEAST_COUNT:
        return []  # it never listened where the clients came
    most = max(fronts, key=lambda pid: (fates.let_in_count(view, pid), -pid))
    evidence = Evidence("connects_refused", len(refused), "connections", first_s)
    return [
        Met(
            most,
            f"then closed its listening socket: {len(refused):,} connects were refused",
            first_s,
            float(refused["closed_s"].max()),
            let_in,
            (evidence,),
            unserved_count(signs),
            len(fronts) if len(fronts) > 1 else 0,
            let_in if len(fronts) > 1 else 0,
        )
    ]


def _closing(signs: Signs) -> list[Met]:
    """Processes that close what they accept, at once."""
    view = signs.view
    connections = view.connections
    ended = connections[connections["is_failed"] & connections["close_kind"].isin(["eof", "rst"])]
    found = []
    closers = closed_at_once(view)
    for each in closers:
        harmed = each.count if view.is_attached else len(ended)
        role = view.subject(each.pid).role
        together = sum(one.count for one in closers if view.subject(one.pid).role == role)
        if harmed < fates.LEAST_COUNT or together < harmed // 2:
            continue
        let_in = _kept_count(signs, each)
        if let_in <= 0:
            continue  # who lets nobody in has no number: something else is amiss
        evidence = Evidence("closed_at_once", each.count, "connection_fates", each.first_s)
        tried, kept = let_in_after(view, each.pid, each.first_s)
        said_s = [w.first_s for w in signs.words_of("own-limit") if w.pid in (0, each.pid)]
        found.append(
            Met(
                each.pid,
                f"closed the other {each.count:,} at once",
                each.first_s,
                each.last_s,
                let_in,
                (evidence,),
                min(each.count, harmed),
                # whom it closes makes room: of those who come later some may take it
                is_told=any(
                    each.first_s - _LAST_WORDS_S <= at_s <= each.last_s + _LAST_WORDS_S
                    for at_s in said_s
                ),
                tried_after=tried,
                let_in_after=kept,
            )
        )
    return found


def _closing_as_clients_saw(signs: Signs) -> list[Met]:
    """The same where nobody watched who closes: those that come from then on are closed at once.

    Clients know how soon after the connect that was. Who closes is whoever serves, unless it passes
    connections on or has ended.
    """
    view = signs.view
    if view.is_attached or len(view.frames["connection_fates"]) or signs.process_ends:
        return []
    peaks = fates.peak_counts(view, *SERVER_ROLES)
    serving = [int(str(pid)) for pid, count in peaks.items() if count >= fates.LEAST_COUNT]
    connections = view.connections
    ended = connections[connections["is_failed"] & connections["close_kind"].isin(["eof", "rst"])]
    soon = ended[ended["closed_s"] - ended["connected_s"] <= _AT_ONCE_S]
    if len(soon) < fates.LEAST_COUNT or len(soon) < _MOST_SHARE * len(ended) or not serving:
        return []
    if any(view.subject(pid).role == "backend" for pid in fates.servers(view)):
        return []
    first_s, last_s = float(soon["start_s"].min()), float(soon["closed_s"].max())
    let_in = int((connections["established_s"] <= first_s + ON_ITS_WAY_S).sum())
    most = max(serving, key=lambda pid: (int(peaks[pid]), -pid))
    if let_in < fates.LEAST_COUNT or signs.is_busy(most, first_s, last_s):
        return []
    sharing_count = len(serving) if len(serving) > 1 else 0
    return [
        Met(
            most,
            f"closed the other {len(soon):,} at once",
            first_s,
            last_s,
            int(peaks[most]) if sharing_count else let_in,
            (Evidence("closed_on_connect", len(soon), "connections", first_s),),
            len(soon),
            sharing_count,
            let_in if sharing_count else 0,
        )
    ]


def _kept_count(signs: Signs, each: ClosedAtOnce) -> int:
    """Connections of clients that a process had let in when it began to close the others.

    Of one that was there before the watch began those count that it held: a proxy has two sockets
    for each.
    """
    accepted = max(0, each.accepted_count - each.count)
    view = signs.view
    served = fates.served_by_children(view, each.pid, each.last_s)
    established = int(view.connections["established_s"].notna().sum())
    if not view.is_attached:  # some are counted that came to nothing, or were closed a little later
        served, accepted = min(served, established), min(accepted, established)
    if served >= fates.LEAST_COUNT:
        return served  # it closes its own end of each, and some children came to nothing
    if not view.is_attached:
        return accepted
    return max(accepted, held_count(view, each.pid, each.first_s))


def _queueing(signs: Signs) -> list[Met]:
    """Processes that have stopped accepting, and are idle."""
    view = signs.view
    found = []
    waiting = {each.pid for each in fates.stuck(view) if blocking_wait(view, each)}
    connections = view.connections
    refused = len(fates.refused(view))
    came = max(1, int(connections["connected_s"].notna().sum()) - fates.LEAST_COUNT)
    for queue in fates.standing_queues(view):
        accepted = fates.let_in_count(view, queue.pid)
        is_watched = fates.accepted_count(view, queue.pid) >= 0
        if not is_watched and fates.grew_between(view, queue.pid, queue.first_s, queue.last_s):
            continue  # it takes them, slowly
        if accepted <= 0 and view.is_attached and queue.pid:  # it had stopped before
            accepted = held_count(view, queue.pid, queue.first_s)
        if not is_watched:  # what it accepted its children may hold
            served = fates.served_by_children(view, queue.pid, queue.last_s)
            accepted = max(accepted, served)
        if queue.is_moving or not queue.pid or accepted <= 0 or not is_harmed_by_waiting(signs):
            continue
        sent_away = _sent_away_count(view, queue, refused)
        if accepted <= sent_away or (sent_away >= fates.LEAST_COUNT and accepted >= came):
            continue  # it took all who came, and sent some of them away
        if queue.pid in waiting:  # what it took already waits for somebody else
            continue
        if not is_free(signs, queue.pid, queue.first_s, queue.last_s):
            continue
        since_s = fates.last_accept_s(view, queue.pid)
        begun_s = queue.first_s if since_s is None else min(since_s, queue.first_s)
        if since_s is None and view.is_attached:
            begun_s = view.hold.start_s
        if queue.sharing_pids:
            begun_s = _all_stopped_s(signs, queue, begun_s)
        evidence = [
            Evidence(
                "standing_queue",
                queue.count,
                queue.table,
                queue.first_s,
                of=queue.place,
            ),
        ]
        if is_watched:
            stood_s = queue.last_s - begun_s
            evidence.append(Evidence("time_without_accept", stood_s, "connection_fates", begun_s))
        found.append(
            Met(
                queue.pid,
                f"then accepted none, while {queue.count:,} waited in the queue of {queue.place}",
                begun_s,
                queue.last_s,
                accepted,
                tuple(evidence),
                unserved_count(signs),
                len(queue.sharing_pids),
                _shared_count(signs, queue),
                # who comes to a listener of its own waits there, whomever siblings let in
                tried_after=queue.count if queue.table == "listeners" else 0,
                after_table="listeners",
                doubt=_NOBODY_CAME if _came_to_none(signs, queue, since_s) else "",
            )
        )
    return found


def _sent_away_count(view: RunView, queue: fates.StandingQueue, refused_count: int) -> int:
    """Of the clients that were refused those whom this process can have refused.

    Behind a proxy that are no more than it closed: the others the proxy refused by itself.
    """
    pid = queue.pid
    if view.subject(pid).role != "backend" or fates.accepted_count(view, pid) < 0:
        return refused_count
    return min(refused_count, fates.closed_count(view, pid, queue.last_s))


_NOBODY_CAME = "that it lets in no more: no client came after the last that it took"


def _came_to_none(signs: Signs, queue: fates.StandingQueue, since_s: float | None) -> bool:
    """It accepted as long as clients came, and left some in its queue when none came any more.

    So does a loop that takes one connection for each event of a listener that tells only once
    (EPOLLET): what has come together stays. A limit of its own looks the same where all came at
    once.
    """
    view = signs.view
    if view.is_attached or queue.sharing_pids or accepts_to_the_end(view, queue.pid):
        return False
    waits = [wait for wait in thread_waits(view, queue.pid) if wait.share > 0.5]
    if any(wait.is_main and wait.kind == "sleep" for wait in waits):
        return False  # no event tells it of anybody
    held = sum(wait.thread_count for wait in waits if wait.kind == "own_connection")
    if held >= _MOST_SHARE * fates.let_in_count(view, queue.pid):
        return False  # each that it let in holds a thread of its own
    came_s = view.connections["connected_s"].dropna()
    if since_s is None:  # nobody watched who accepts: whom it let in last clients know
        since_s = float(view.connections["established_s"].max())
    later = came_s > since_s + ON_ITS_WAY_S
    return int(later.sum()) < fates.LEAST_COUNT and since_s - float(came_s.max()) <= ON_ITS_WAY_S


def _all_stopped_s(signs: Signs, queue: fates.StandingQueue, since_s: float) -> float:
    """When nobody took anyone from a queue any more; of those who share it some may be too young.

    A server that forks as it fills has processes that were not seen to accept: clients know whom
    they let in.
    """
    if signs.view.is_attached:
        return since_s
    let_in_s = signs.view.connections["established_s"]
    last_s = float(let_in_s[let_in_s <= queue.last_s].max())
    return last_s if since_s < last_s <= queue.last_s - _STANDS_S else since_s


def _shared_count(signs: Signs, queue: fates.StandingQueue) -> int:
    """What all who share a queue took of it, 0 where nobody shares it.

    A server that forks as it fills has processes that were too young to be counted.
    """
    if not queue.sharing_pids:
        return 0
    taken = sum(fates.accepted_count(signs.view, pid) for pid in queue.sharing_pids)
    return taken if signs.view.is_attached else max(taken, signs.view.peak_count)


def _silent(signs: Signs) -> list[Met]:
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
        if not each.answered_count or not is_free(signs, each.pid, each.first_s, each.last_s):
            continue
        evidence = Evidence("unread_connections", each.unread_count, "open_fates", each.first_s)
        found.append(
            Met(
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


def _refusing(signs: Signs) -> list[Met]:
    """A process that answers with an error of its own, and asks nobody behind it."""
    view = signs.view
    refused = fates.refused(view)
    told = fates.refusals_told(view)
    pattern = _ANY_STATUS if asks_nobody_more(signs) else _TOO_MANY
    statuses = [int(match[1]) for text in told if (match := pattern.match(text))]
    serving = [pid for pid in fates.servers(view) if fates.let_in_count(view, pid) > 0]
    fronts = [pid for pid in serving if view.subject(pid).role != "backend"]
    failed = signs.errors[(signs.errors["syscall"] == "connect") & signs.errors["pid"].isin(fronts)]
    established = int(view.connections["established_s"].notna().sum())
    said = [each for each in signs.words_of("own-limit") if _REFUSES.search(each.line)]
    if len(refused) < fates.LEAST_COUNT or not statuses or len(failed):
        return []
    if not fronts or (len(fronts) > 1 and not said):
        return []
    first_s, last_s = float(refused["closed_s"].min()), float(refused["closed_s"].max())
    if not established or not any(is_free(signs, pid, first_s, last_s) for pid in fronts):
        return []
    if statuses[0] not in _OWN_STATUSES and established < fates.LEAST_COUNT:
        return []  # it let hardly anybody in: what they ask for, or who they are, is refused
    evidence = (
        Evidence("handshakes_refused", len(refused), "connections", first_s),
        Evidence("http_status", statuses[0], "events", first_s),
    )
    how = f"answered the other {len(refused):,} with HTTP {statuses[0]}"
    is_rate = statuses[0] == _TOO_MANY_REQUESTS
    speakers = [each.pid for each in said if each.pid in fronts]
    return [
        Met(
            max(set(speakers or fronts), key=(speakers or fronts).count),
            how,
            first_s,
            last_s,
            established,
            evidence,
            len(refused),
            len(fronts) if len(fronts) > 1 else 0,
            established if len(fronts) > 1 else 0,
            is_rate=is_rate or any("limiting requests" in each.line for each in said),
            is_told=bool(said),
            is_sure_rate=is_rate and any(_RATE.search(text) for text in told),
        )
    ]


def asks_nobody_more(signs: Signs) -> bool:
    """nginx: `no live upstreams`, though each connect of it was taken: max_conns, not a failure."""
    view = signs.view
    said = [each.line for each in signs.words_of("backend-unavailable")]
    if not said or not all(_NO_LIVE.search(line) for line in said):
        return False
    errors, resets = signs.errors, view.frames["tcp_resets"]
    failed = (errors["syscall"] == "connect") & errors["role"].isin(SERVER_ROLES)
    reset = (resets["state"] == "SYN_SENT") & (resets["side"] == "other")
    if failed.any() or (reset & bool(view.has_own_namespace)).any():
        return False
    return int(view.connections["established_s"].notna().sum()) >= fates.LEAST_COUNT


_NO_LIVE = re.compile(r"no live upstreams")
_ANY_STATUS = re.compile(r"HTTP (4\d\d|5\d\d)\b")
_REFUSES = re.compile(r"limiting (?:connections|requests)|concurrency limit")
"""Words of a server that answers with an error, and does not close or wait."""
_TOO_MANY_REQUESTS = 429
"""RFC 6585 section 4: too many requests in a given amount of time."""
_RATE = re.compile(r"Retry-After|\brate\b|too (?:fast|quickly|often)", re.IGNORECASE)
"""It says when they may come again, or what it counts."""
_OWN_STATUSES = (429, 500, 503)
"""By these a server says that it cannot serve, not that a client asks for the wrong thing."""
_TOO_MANY = re.compile(r"HTTP (402|403|409|42[0-59]|43\d|500|503)\b")
"""All clients ask for the same: who lets some in and then refuses by any of these counts them."""


def is_harmed_by_waiting(signs: Signs, late_count: int = 0) -> bool:
    """Somebody was kept out, or came late; of real clients nobody says it."""
    return signs.view.is_attached or unserved_count(signs) + late_count >= fates.LEAST_COUNT


def is_halted(view: RunView, pid: int, first_s: float, last_s: float) -> bool:
    """A signal, or a debugger, had stopped it at most samples (SIGSTOP; T and t of proc(5))."""
    samples = view.frames["process_samples"]
    samples = samples[(samples["pid"] == pid) & (samples["state"] != "")]
    mine = samples["state"][pd.Series(view.seconds_of(samples["at_ns"]), index=samples.index)
                            .between(first_s, last_s)]  # fmt: skip
    return len(mine) > 0 and float(mine.isin(["stopped", "tracing-stop"]).mean()) > 0.5


def is_free(signs: Signs, pid: int, first_s: float, last_s: float) -> bool:
    """The process could serve: it needs no full core, and its first thread waits for events."""
    view = signs.view
    if signs.is_busy(pid, first_s, last_s) or is_halted(view, pid, first_s, last_s):
        return False
    main = main_wait(view, pid)
    if main is None:
        return True
    is_parents = main.kind == "sleep" or main.syscall in _PARENTS_CALLS
    if is_parents and fates.served_by_children(view, pid, last_s) >= fates.LEAST_COUNT:
        return True  # it waits until one of them ends
    if main.kind == "sleep":
        return is_at_select(descriptors_of(signs, pid))
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
