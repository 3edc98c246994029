"""``own-limit``: the server, or a process behind it, lets in so many connections and no more.

Proof: a number. Up to it connections are served, of the attempts begun after it hardly any is, and
the process closes them at once or right after their upgrade, or leaves them in its accept queue, or
takes them and reads nothing, or closes its listening socket, or ends and says why, while it has
descriptors and CPU to spare and no call of it fails for want of anything.
Of several workers each is judged by those that came to it. Where nobody came after the last that it
took, it may have been told of them only once (EPOLLET): medium confidence.
What it asks of the kernel for each may be used up, as files, terminals or instances of inotify are:
then the call that failed is named (``analysis/signs/used_up_calls.py``).
The setting is named where its value was found (``analysis/server/own_limits.py``).
Told apart from ``fd-limit-process``: descriptors are left and no accept returned EMFILE. From
``accept-queue-overflow``, ``hot-worker-code`` and ``worker-blocked``: the process is idle, and the
number does not grow with time. From ``waits-for-slot``: no thread waits for somebody else. From
``queue-left-standing``: there it goes on taking some, or its epoll says that it is told only once.
"""

from __future__ import annotations

import re

from analysis.causes import Cause, Effect
from analysis.evidence import Evidence, Finding, Fix, capitalised, times
from analysis.frames.run_view import RunView
from analysis.server import fates
from analysis.server.own_limits import NamedLimit, name_limit
from analysis.signs.left_queues import left_queues
from analysis.signs.limit_met import met_limits
from analysis.signs.room_left import Met, came_after, descriptors_of
from analysis.signs.signs import Signs
from analysis.signs.used_up_calls import used_up

CAUSE = Cause(
    id="own-limit",
    line="the server, or what is behind it, lets in so many connections and no more",
    effect=Effect.STOPS_SERVING,
)


def find(signs: Signs) -> list[Finding]:
    """One finding for each process of the deepest tier that met its own limit."""
    view = signs.view
    if not view.is_foreign:
        return []
    first: dict[int, Met] = {}
    left = {queue.pid for queue in left_queues(signs)}
    for each in met_limits(signs):
        if each.pid not in left:
            first.setdefault(each.pid, each)
    return [_finding(signs, first[pid]) for pid in fates.deepest(view, first)]


def _finding(signs: Signs, met: Met) -> Finding:
    view = signs.view
    subject = view.subject(met.pid)
    name = capitalised(str(subject))
    descriptors = met.descriptors or descriptors_of(signs, met.pid)
    wanted = max(view.target_count, met.let_in + met.explained)
    facts = view.process_facts(met.pid)
    share = -(-wanted // max(1, met.sharing_count))
    known = None
    is_sure_rate = met.is_rate and (met.is_told or met.is_sure_rate)
    for count in (wanted, share) if not is_sure_rate else ():
        known = name_limit(
            *(subject.command, facts, met.let_in, descriptors, count),
            shared_count=met.shared_count,
        )
        if known is None or known.is_of_all:  # else it is one of each, which needs its share
            break
    if known is None and not is_sure_rate:  # a title may have been written over its words
        started = {"settings": (view.manifest.get("server") or {}).get("settings") or []}
        known = name_limit(subject.command, started, met.let_in, descriptors, wanted)
    asked = used_up(signs, met.pid, met.first_s, met.explained)
    if asked is not None:
        known = None
    who, held, together = name, met.let_in, ""
    if met.shared_count and known is not None and not known.is_of_all:
        others = met.sharing_count - 1
        together = f", and {met.shared_count:,} together with {others:,} other"
        together += ("s" if others > 1 else "") + " that share its listener,"
    elif met.shared_count:
        held = met.shared_count
        others = met.sharing_count - 1
        who += f" and {others:,} other" + ("s" if others > 1 else "") + " that share its listener"
    tried, let_in, counted_in = came_after(signs, met)
    evidence = [
        Evidence("let_in", held, met.evidence[0].table, met.first_s),
        *met.evidence,
    ]
    if not view.is_attached:
        evidence += [
            Evidence("attempts_after", tried, counted_in, met.first_s),
            Evidence("attempts_after_let_in", let_in, counted_in, met.first_s),
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
    limit = " on how fast clients come" if is_sure_rate else _words(known)
    whose = f"No call of it failed for want of descriptors or memory: the limit is its own{limit}."
    if asked is not None:
        failed = f"{asked.syscall} returned {asked.errno_name} {times(asked.count)}"
        evidence.append(
            Evidence(
                "used_up_calls",
                asked.count,
                "failing_syscalls",
                asked.first_s,
                of=asked.syscall,
            )
        )
        limit, whose = f"; {failed}", f"What it asks for each of them is used up: {failed}."
    confidence, missing = signs.trust("connection_fates", "open_fates", "process_samples")
    is_left = bool(met.doubt) and known is None
    if is_left:
        confidence, missing = "medium", (met.doubt, *missing)
        limit = ", or it was told only once of several that came together"
    return Finding(
        cause=CAUSE.id,
        severity="warning",
        side="server",
        subject=subject,
        first_s=met.first_s,
        last_s=max(met.first_s, met.last_s),
        evidence=tuple(evidence),
        explanation=(f"{who} let in {held:,} connections{together} and {met.how}{left}. {whose}"),
        fix=(
            *([_ALL_OF_THEM] if is_left else []),
            (Fix(asked.fix, asked.effect) if asked is not None else None)
            or _faster(view, met)
            or _as_it_says(signs, met)
            or _fix(known, str(subject), held),
            *_slower(view, met),
            *_from_more_addresses(signs, met, known),
        ),
        at_connections=held,
        confidence=confidence,
        missing=missing,
        sentence=f"{who} let in {held:,} connections{together} and {met.how}"
        + (limit if asked is not None else f": a limit of its own{limit}")
        + left,
        explained_count=met.explained,
    )


_ALL_OF_THEM = Fix(
    "accept until EAGAIN at each event of the listener, or watch it without EPOLLET",
    "none stays in the queue while the server waits for events",
)


def _faster(view: RunView, met: Met) -> Fix | None:
    """The line that limits the rate, where the server said that it is one and its file is known."""
    if not (met.is_rate and (met.is_told or met.is_sure_rate)):
        return None
    for each in view.process_facts(met.pid).get("settings") or []:
        text = str(each.get("text") or "")
        if _RATE_SETTING.search(text):
            place = f"{each['file']}:{each['line']}"
            return Fix(f"a higher rate or burst in {place}  # {text}", "more come in a second")
    setting = "limit_req_zone and limit_req" if met.is_told else "the server's limit on the rate"
    return Fix(f"a higher rate or burst in {setting}", "more come in a second")


def _as_it_says(signs: Signs, met: Met) -> Fix | None:
    """What helps against the limit that the server named before it ended."""
    for said in signs.words_of("own-limit"):
        match = _THREADS_OF_GO.search(said.line)
        if match and said.pid in (0, met.pid):
            return Fix(
                "let fewer calls block at a time  # each takes a thread, and it may have "
                f"{match[1]}: debug.SetMaxThreads, 10,000 by default",
                "it goes on when more of them block",
            )
    return None


_THREADS_OF_GO = re.compile(r"program exceeds (\d+)-thread limit")
"""src/runtime/proc.go, checkmcount."""
_RATE_SETTING = re.compile(r"\blimit_req(?:_zone)?\b")


def _from_more_addresses(signs: Signs, met: Met, known: NamedLimit | None) -> tuple[Fix, ...]:
    """What the clients can do where the limit is one on those that come from one address."""
    view = signs.view
    said = [each.line for each in signs.words_of("own-limit")]
    text = f"{known.setting} {known.where}" if known is not None else ""
    said += fates.refusals_told(view)
    if view.is_attached or not any(_PER_ADDRESS.search(each) for each in (text, met.how, *said)):
        return ()
    count = max(1, view.connections["source_address"].nunique())
    established = int(view.connections["established_s"].notna().sum())
    let_in = max(1, min(established, met.shared_count or met.let_in))
    wanted = -(-view.target_count * count // let_in)
    if wanted <= count:
        return ()
    return (
        Fix(
            f"profile-run --source-addresses {wanted}  # if it counts those of one address",
            f"{let_in // count:,} from each of them",
        ),
    )


_PER_ADDRESS = re.compile(
    r"limit_conn|limiting connections|per.?(?:ip|host|client|address|source)|conn_cur|sc0_conn"
    r"|remote_?addr|(?:your|one|same|this|that|an?) (?:ip\b|address)",
    re.IGNORECASE,
)
"""Words of a limit on connections of one client."""


def _slower(view: RunView, met: Met) -> tuple[Fix, ...]:
    """What the clients can do where the limit is one on their rate, or may be."""
    if not met.is_rate or view.is_attached:
        return ()
    is_sure = met.is_told or met.is_sure_rate
    seconds = max(0.1, view.hold.start_s - view.ramp.start_s)
    rate = max(1, min(int(met.let_in / seconds), met.let_in))
    return (
        Fix(
            f"profile-run --ramp {rate} --retry 10  # {'it' if is_sure else 'if it'} limits "
            "how fast clients come",
            "who is refused comes back later",
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
        f"raise the limit on connections that {name} sets itself  # neither its options nor the "
        f"files that they name have a {let_in:,}",
        f"more than {let_in:,} connections are let in",
    )
