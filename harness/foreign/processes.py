"""Follows the processes of a server that is not ours, into the slots that live.bin keeps for them.

A process of the server's tree is *held* (gets a slot, and with it everything that a worker of our
own has) when it owns the listener or one of its connections. How many connections it holds is its
number of open descriptors less those it had before the first one: two microseconds to read, where
walking 20,000 sockets would disturb what is measured. Established connections are counted by the
growth of that number, so they are a lower bound. Before Linux 6.2 the number of a large process is
an estimate (``probes/proc/descriptor_count.py``), and so is that growth.

A proxy opens a second socket for each connection, to what is behind it: those count with the
connection, so that its limit is met where it is.

A process whose children hold the connections instead of itself is an acceptor: the primary of a
node cluster, which accepts for all and passes on, or a parent that only keeps the listener. So is
one that has the listener while its siblings, which have it not, hold the connections.

What works behind them (``harness/foreign/backends.py``) has a slot as well, with the role of a
backend: its descriptors count, its connections are no clients.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.fleet.reports import ProcessEnd
from harness.foreign import backends
from harness.foreign.backends import Backend
from harness.foreign.process_slots import Departed, ProcessSlots
from harness.foreign.server_settings import Setting, program_of, settings_of
from probes.contract.live import Counter, Live, Role
from probes.netlink import connection_dump, socket_owners
from probes.netlink.connection_dump import Connections
from probes.netlink.socket_owners import WALK_MOST_COUNT
from probes.proc import process_tree
from probes.proc.descriptor_count import descriptor_count

TREE_PERIOD_S = 0.5
SERVICE_TREE_PERIOD_S = 1.0
"""For a server in service; at once after one of its processes ended."""
_SETUP_PERIOD_S = 0.1
BACKEND_PERIOD_S, _BACKEND_REST_FACTOR = 2.0, 200.0
"""How often to look for processes that the server is connected to; so many times as long as the
last look took without one."""
COUNT_PERIOD_S = 0.04
YOUNG_S = 3.0
"""A new worker opens descriptors of its own for so long after it was first seen."""
_YOUNG_MOST_COUNT = 1_024
_FEW_COUNT = 256
_REST_FACTOR, _SERVICE_REST_FACTOR = 9.0, 200.0
"""After a look at all sockets of the namespace, so many times as long without one: of a server in
service it is half a per cent of a core, and with a million sockets a look every few minutes."""
_COUNT_REST_FACTOR = 20.0
"""After a look at the descriptors of all, which takes long before Linux 6.2."""
_STATUS_WAIT_S = 1.0
_END_AGAIN_S = 0.05
_MOVING_SHARE = 0.01
"""Of a process's descriptors: who gains or loses so many between two looks is looked at soon."""
_FEW_CONNECTIONS_COUNT = 20
_PASSING_SHARE = 0.05
"""Of the connections that others hold, an acceptor has this part at most: those on their way."""
_PROXY_LEAST_SHARE = 0.5
"""A process that opened a connection for at least every second one that it took is a proxy."""
_TREE_REST_FACTOR, _SERVICE_TREE_REST_FACTOR = 10.0, 200.0
"""After a look at the tree, so many times as long without one: 0.5 % of a core at most."""
_TREE_LONGEST_S = 3.0
_TITLE_S = 3.0
"""So long after it was found a process may still write what it is called into its command line."""
_DESCRIBED_MOST = 1_000
"""Processes that ``describe`` tells of, the newest: a watch of days sees many of them."""


@dataclass(slots=True)
class Held:
    """One process that holds connections, and its slot."""

    pid: int
    slot_index: int
    slot: memoryview
    command: str
    own_count: int
    since_s: float
    parent_pid: int
    worker: int
    ended_ns: int = 0
    end: ProcessEnd | None = None
    owns_listener: bool = False
    is_told: bool = False  # what of its descriptors is its own
    outward_count: int = 0  # connections that it had opened itself before the load
    behind: Backend | None = None
    program: str = ""
    settings: list[Setting] = field(default_factory=list)
    started_ns: int = 0  # of the process itself, 0 when not known


class ForeignProcesses:
    """Discovers and follows the processes that hold a server's connections.

    Args:
        live: Shared memory; slots 0 to ``slots_count`` - 1 are for these processes.
        slots_count: Most processes that can be followed at the same time.
        ports: The server's ports.
        clock_ns: CLOCK_MONOTONIC.

    Attributes:
        held: Who has a slot: those that live, and those that ended and whose slot nobody took yet.
        known: Status and signal by pid, from who reaped it.
        revision: Grows whenever ``describe`` says something else than before.
    """

    def __init__(
        self,
        live: Live,
        slots_count: int,
        *ports: int,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.held: list[Held] = []
        self.revision = 0
        self.known: dict[int, tuple[int, int]] = {}
        self._live = live
        self._clock_ns = clock_ns
        self._slots_count = slots_count
        self._slots = ProcessSlots(live, slots_count)
        self._seen_count = 0
        self._departed: list[tuple[Departed, ProcessEnd | None]] = []
        self._described: dict[int, dict[str, Any]] = {}  # by number of the worker
        self._ports = ports
        self._roots: list[int] = []
        self._excluded: set[int] = set()
        self._others: list[int] = []  # processes of the tree that hold none of its connections
        self._backends_due_s = 0.0
        self._looked_at: dict[int, int] = {}  # pid to descriptors when it held no connection
        self._no_connections: dict[int, set[int]] = {}  # pid to its sockets that are none
        self._begins = False
        self._is_service = False
        self._rest_until_s = 0.0
        self._listening: set[int] = set()
        self._ends = process_tree.EndWatch()
        self._ended_at_s: dict[int, float] = {}
        self._tree_due_s = 0.0
        self._tree_period_s = TREE_PERIOD_S
        self._count_due_s = 0.0
        self._is_loaded = False
        self._are_moving = True
        self._overflown = self._told_overflow = False

    def watch_tree(self, roots: list[int], *, without: int = 0) -> None:
        """Says whose descendants to look at.

        Args:
            roots: Processes of the server.
            without: One that is not of it itself, only its children: the parent that started it.
        """
        self._roots = roots
        if without:
            self._excluded.add(without)
        self._tree_due_s = 0.0

    @property
    def pids(self) -> list[int]:
        """Those that were alive at the last look, in order of appearance."""
        return [each.pid for each in self.held if not each.ended_ns]

    @property
    def are_left_out(self) -> bool:
        """Whether there were more of them at the last look than there are slots."""
        return self._overflown

    @property
    def ends(self) -> list[ProcessEnd]:
        """How those ended that still have their slot."""
        return [each.end for each in self.held if each.end is not None]

    def take_departed(self) -> list[tuple[Departed, ProcessEnd | None]]:
        """Processes whose slot went to another one since the last call, and how they ended."""
        departed, self._departed = self._departed, []
        return departed

    def _now_s(self) -> float:
        return self._clock_ns() / 1e9

    def begin_load(self) -> None:
        """The first connection comes next: what is open now is a process's own."""
        self._tree_due_s = self._count_due_s = 0.0
        self.follow()
        self._set_own([each for each in self.held if not each.ended_ns])
        self._is_loaded = True

    def begin_watch(self) -> list[tuple[str, int, str]]:
        """Connections are there already: finds who holds them, and tells them from what is its own.

        Returns:
            Like ``follow``.
        """
        self._is_loaded = True
        self._is_service = True
        self._tree_period_s = SERVICE_TREE_PERIOD_S
        self._tree_due_s = self._count_due_s = 0.0
        self._begins = True
        news = self.follow()
        self._begins = False
        # Now that all are known: one with many descriptors is told by all together.
        self._set_own([each for each in self.held if each.behind is None])
        for each in self.held:
            each.since_s -= YOUNG_S  # none of them is new
            for word in (Counter.OPEN_COUNT, Counter.ESTABLISHED_TOTAL, Counter.ATTEMPTED_TOTAL):
                each.slot[word] = 0
            self._count(each)
        self._find_acceptors()
        return news

    def follow(self) -> list[tuple[str, int, str]]:
        """Looks again where a look is due.

        Returns:
            What happened since, as (event, pid, detail).
        """
        now_s = self._now_s()
        if now_s < self._count_due_s:
            return []
        self._count_due_s = now_s + COUNT_PERIOD_S
        news = self._take_ends(now_s)
        if news:  # a parent that replaces it does so now
            self._tree_due_s = 0.0
        if now_s >= self._tree_due_s:
            began_s = time.thread_time()
            news += self._look_for_new(now_s)
            factor = _SERVICE_TREE_REST_FACTOR if self._is_service else _TREE_REST_FACTOR
            rest_s = min(_TREE_LONGEST_S, factor * (time.thread_time() - began_s))
            period_s = self._tree_period_s if self._is_loaded else _SETUP_PERIOD_S
            self._tree_due_s = now_s + (max(period_s, rest_s) if self._is_loaded else period_s)
            news += self._look_behind(now_s)  # rests by itself
        self._are_moving = bool(news)
        began_s = time.thread_time()
        for each in self.held:
            if not each.ended_ns:
                self._count(each)
        cost_s = time.thread_time() - began_s
        self._count_due_s = now_s + max(COUNT_PERIOD_S, _COUNT_REST_FACTOR * cost_s)
        return news

    def end_together(self, alive_ns: int, at_ns: int) -> list[tuple[str, int, str]]:
        """All of the server was killed at one moment, which nobody could report.

        Args:
            alive_ns: Until then none of them was: who was killed later was so in that moment.
            at_ns: The moment.

        Returns:
            Like ``follow``.
        """
        news: list[tuple[str, int, str]] = []
        for each in self.held:
            stat = process_tree.read_stat(each.pid) if not each.ended_ns else None
            if stat is not None and stat.is_alive:
                continue  # a backend that somebody else started
            if each.end is None:
                self._forget(each.pid)
                held = each.slot[Counter.OPEN_COUNT]
                detail = f"{each.command}, killed with its launcher, held {held} descriptors"
                news.append(("process_exited", each.pid, f"{detail} of connections"))
            elif each.end.status >= 0 or each.end.signal not in (0, signal.SIGKILL):
                continue
            elif each.ended_ns < alive_ns:
                continue  # before that
            self._end(each, at_ns, -1, signal.SIGKILL)
        return news

    @property
    def are_moving(self) -> bool:
        """Whether processes came or went at the last look, or many descriptors of one of them."""
        return self._are_moving

    def wait(self, timeout_s: float) -> None:
        """Waits until one of them ends, but not longer than that."""
        if self._ends.wait(timeout_s):
            time.sleep(min(_END_AGAIN_S, timeout_s))  # it may be a zombie for a while

    def describe(self) -> list[dict[str, Any]]:
        """The processes for the manifest; who owned the listener when it was first seen.

        Of a server that replaces its workers the newest ``_DESCRIBED_MOST``.
        """
        return list(self._described.values())

    def _describe(self, each: Held) -> None:
        self.revision += 1
        self._described[each.worker] = {
            "pid": each.pid,
            "worker": each.worker,
            "command": each.command,
            "owns_listener": each.owns_listener,
            "settings": each.settings,
            "behind": each.behind is not None,
            "front_pid": each.behind.front_pid if each.behind else 0,
            "listens_on": each.behind.listens_on if each.behind else "",
        }
        if len(self._described) > _DESCRIBED_MOST:
            alive = {other.worker for other in self.held if not other.ended_ns}
            oldest = min(self._described.keys() - alive, default=-1)
            self._described.pop(oldest, None)

    def close(self) -> None:
        """Ends the watch."""
        self._ends.close()

    # -- connections -----------------------------------------------------------------------------

    def _count(self, each: Held) -> None:
        counted_ns = time.monotonic_ns()
        count = descriptor_count(each.pid)
        if count < 0:
            return
        open_count = max(0, count - each.own_count)
        grown = open_count - each.slot[Counter.OPEN_COUNT]
        each.slot[Counter.OPEN_COUNT] = open_count
        each.slot[Counter.COUNTED_NS] = counted_ns
        self._are_moving |= abs(grown) > _MOVING_SHARE * each.slot[Counter.NOFILE_SOFT_COUNT]
        if grown > 0 and self._is_loaded:
            each.slot[Counter.ESTABLISHED_TOTAL] += grown
            each.slot[Counter.ATTEMPTED_TOTAL] += grown

    def _set_own(self, some: Sequence[Held]) -> None:
        """Counts what is open and no connection, as far as that can be told cheaply.

        All of them are told by one look at the sockets of their namespace, which in a ramp are many
        and become more meanwhile.
        """
        counts = [descriptor_count(each.pid) for each in some]
        sockets = {
            each.pid: set(socket_owners.socket_inodes(each.pid))
            if count <= WALK_MOST_COUNT
            else set()
            for each, count in zip(some, counts, strict=True)
        }
        found = self._look_at_connections(sockets)
        for each, count in zip(some, counts, strict=True):
            if count > WALK_MOST_COUNT:
                self._set_own_count(each, count, self._connections_of_many(each.pid, count, found))
            elif count >= 0:
                mine = sockets[each.pid]
                outward_count = len(mine & found.outward_inodes)
                self._set_own_count(each, count, len(mine & found.inodes), outward_count)

    def _set_own_count(
        self, each: Held, count: int, connections: int, outward_count: int = 0
    ) -> None:
        if not self._is_loaded:
            each.outward_count = outward_count
        elif connections >= _FEW_CONNECTIONS_COUNT:
            outward = outward_count - each.outward_count
            if outward >= _PROXY_LEAST_SHARE * connections:
                connections += outward
        if self._is_loaded and each.is_told and descriptor_count(each.pid) != count:
            return  # it accepted meanwhile: what was its own before is nearer to the truth
        each.is_told = True
        self._set_limits(each, max(0, count - connections))

    def _set_limits(self, each: Held, own_count: int) -> None:
        each.own_count = own_count
        each.slot[Counter.OWN_FDS_COUNT] = own_count
        limit = process_tree.nofile_soft_count(each.pid)
        each.slot[Counter.NOFILE_SOFT_COUNT] = limit
        each.slot[Counter.TARGET_COUNT] = max(0, limit - own_count)

    def _look_at_connections(self, sockets: Mapping[int, set[int]]) -> Connections:
        """The connections in the namespaces of some processes; the next look may wait.

        Args:
            sockets: Inodes of the sockets of each process that are asked about.
        """
        began_s = time.thread_time()
        namespaces = {socket_owners.network_namespace(pid): pid for pid in sockets}
        wanted = set[int]().union(*sockets.values())
        found = connection_dump.look_at(namespaces.values(), wanted, self._ports)
        cost_s = time.thread_time() - began_s
        factor = _SERVICE_REST_FACTOR if self._is_service else _REST_FACTOR
        self._rest_until_s = self._now_s() + factor * cost_s
        return found

    def _connections_of_many(
        self, pid: int, descriptors_count: int, connections: Connections
    ) -> int:
        """Of a process that has too many descriptors to look at them one by one.

        Processes of one program have about as many of their own, so what all together have beside
        connections is shared evenly.
        """
        if not connections.count:
            return 0
        counts = [descriptor_count(each) for each in {pid, *self.pids}]
        others = max(0, sum(counts) - connections.count) // len(counts)
        return max(0, descriptors_count - others)

    # -- processes -------------------------------------------------------------------------------

    def _look_for_new(self, now_s: float) -> list[tuple[str, int, str]]:
        known = {each.pid for each in self.held if not each.ended_ns}
        tree = [pid for root in self._roots for pid in process_tree.tree_of(root)]
        passed_over = known | self._excluded
        fresh = [pid for pid in dict.fromkeys(tree) if pid not in passed_over]
        self._forget_all_but(fresh)
        self._overflown = False
        news: list[tuple[str, int, str]] = []
        taken: list[Held] = []
        holders = self._holders(fresh)
        for pid in [*holders, *self._successors(pid for pid in fresh if pid not in holders)]:
            news += self._take(pid, now_s, taken)
        self._others = [pid for pid in fresh if pid not in {each.pid for each in taken}]
        young = [
            each
            for each in self.held
            if not each.ended_ns
            and each.behind is None
            and (not each.is_told or self._is_young(each, now_s))
        ]
        if taken and not self._is_loaded:
            self._set_own(taken)
        elif young and self._is_loaded and now_s >= self._rest_until_s and not self._begins:
            self._set_own(young)
        news += [self._publish(each) for each in taken]
        self._find_acceptors()
        return news

    def _successors(self, others: Iterable[int]) -> list[int]:
        """Processes that took the place of one that ended, though they hold no connection yet.

        As that one they are children of its parent and run its program, and began after it: a
        worker of node's cluster has not even the listener.
        """
        before = [each for each in self.held if each.ended_ns and each.behind is None]
        if not before:
            return []
        found = []
        for pid in others:
            stat = process_tree.read_stat(pid)
            if stat is None or not stat.is_alive:
                continue
            began_ns, program = process_tree.start_moment_ns(stat.start_ticks), program_of(pid)
            found += [
                pid
                for each in before
                if stat.ppid == each.parent_pid
                and program == each.program != ""
                and began_ns > each.started_ns > 0
            ][:1]
        return found

    @staticmethod
    def _is_young(each: Held, now_s: float) -> bool:
        count = descriptor_count(each.pid) if now_s - each.since_s < YOUNG_S else -1
        return 0 <= count <= _YOUNG_MOST_COUNT

    def _look_behind(self, now_s: float) -> list[tuple[str, int, str]]:
        """What works behind the server: of its tree at once, else by its connections."""
        found = backends.in_tree(self._others, self._ports)
        if self._is_loaded and now_s >= self._backends_due_s:
            began_s = time.thread_time()
            alive = [each for each in self.held if not each.ended_ns]
            fronts = [each.pid for each in alive if each.behind is None]
            known = {each.pid for each in alive} | {each.pid for each in found} | self._excluded
            found += backends.by_connections(fronts, known)
            rest_s = (time.thread_time() - began_s) * _BACKEND_REST_FACTOR
            self._backends_due_s = now_s + max(BACKEND_PERIOD_S, rest_s)
        news: list[tuple[str, int, str]] = []
        for behind in found:
            taken: list[Held] = []
            news += self._take(behind.pid, now_s, taken)
            for each in taken:
                each.behind, each.is_told = behind, True
                self._set_limits(each, max(0, descriptor_count(each.pid) - behind.connection_count))
            news += [self._publish(each) for each in taken]
        return news + self._take_new_names(now_s)

    def _take_new_names(self, now_s: float) -> list[tuple[str, int, str]]:
        """A process that executed another program meanwhile (execve(2)) is called by that.

        A young one has the title of its parent until it has written its own.
        """
        news: list[tuple[str, int, str]] = []
        for each in self.held:
            if each.ended_ns:
                continue
            program = program_of(each.pid)
            if now_s - each.since_s < _TITLE_S or (program and program != each.program):
                self._take_limit(each)
            if not program or program == each.program:
                if now_s - each.since_s < _TITLE_S:
                    self._take_title(each)
            else:
                each.program = program
                each.command = process_tree.command_name(each.pid)
                each.settings = settings_of(each.pid, each.parent_pid)
                self._describe(each)
                news.append(("server_process_became", each.pid, each.command))
        return news

    def _take_limit(self, each: Held) -> None:
        """A process that executed another program, or just began, may set its limit itself."""
        limit = process_tree.nofile_soft_count(each.pid)
        if limit not in (0, each.slot[Counter.NOFILE_SOFT_COUNT]):
            self._set_limits(each, each.own_count)

    def _take_title(self, each: Held) -> None:
        title = process_tree.command_name(each.pid)
        if title and title != each.command:
            each.command = title
            self._describe(each)

    def _forget_all_but(self, fresh: Iterable[int]) -> None:
        """What was learned of a process goes with it: its pid may be another one's later."""
        kept = set(fresh)
        for pid in self._looked_at.keys() - kept:
            del self._looked_at[pid]
        for pid in self._no_connections.keys() - kept:
            del self._no_connections[pid]

    def _holders(self, fresh: Sequence[int]) -> list[int]:
        """Those that own the listener or a connection of it."""
        found: list[int] = []
        unclear: dict[int, set[int]] = {}
        for pid in fresh:
            count = descriptor_count(pid)
            if count > WALK_MOST_COUNT:
                found.append(pid)  # so many can only be connections
            # The same count need not be the same descriptors: a file may have been closed and the
            # listener opened. Looking at few of them costs less than missing that.
            elif count > 0 and (count <= _FEW_COUNT or self._looked_at.get(pid) != count):
                mine = set(socket_owners.socket_inodes(pid))
                if self._has_listener(pid, mine):
                    found.append(pid)
                elif mine - self._no_connections.get(pid, set()):
                    unclear[pid] = mine
                else:
                    self._looked_at[pid] = count
        if unclear and self._is_loaded and self._now_s() >= self._rest_until_s:
            connections = self._look_at_connections(unclear).inodes
            found += [pid for pid, mine in unclear.items() if mine & connections]
            # A connection is one from the start: what is none now needs no other look at all.
            self._no_connections |= unclear
        return [pid for pid in fresh if pid in found]

    def _has_listener(self, pid: int, inodes: set[int]) -> bool:
        if not inodes:
            return False
        try:
            listening = {
                each.inode for each in socket_owners.listeners(pid) if each.port in self._ports
            }
        except OSError:
            return False
        if not inodes & listening:
            return False
        self._listening.add(pid)
        return True

    def _take(self, pid: int, now_s: float, found: list[Held]) -> list[tuple[str, int, str]]:
        """Gives a process a slot, which others see once it is published."""
        if not self._ends.add(pid):
            return []  # it is gone again
        taken = self._slots.take(now_s)
        if taken is None:
            self._ends.forget(pid)
            self._overflown = True
            if self._told_overflow:
                return []
            self._told_overflow = True
            said = f"only {self._slots_count} processes are followed at a time"
            return [("too_many_processes", pid, said)]
        index, departed = taken
        if departed is not None:
            self._let_go(departed)
        slot = self._slots.clear(index)
        stat = process_tree.read_stat(pid)
        parent_pid = stat.ppid if stat else 0
        worker, self._seen_count = self._seen_count, self._seen_count + 1
        name = process_tree.command_name(pid)
        each = Held(pid, index, slot, name, 0, now_s, parent_pid, worker)
        each.owns_listener = pid in self._listening
        each.program, each.settings = program_of(pid), settings_of(pid, parent_pid)
        each.started_ns = process_tree.start_moment_ns(stat.start_ticks) if stat else 0
        # Until the next look at the connections all that it has open counts as its own.
        self._set_limits(each, max(0, descriptor_count(pid)))
        self.held.append(each)
        found.append(each)
        return []

    def _publish(self, each: Held) -> tuple[str, int, str]:
        slot, at_ns = each.slot, self._clock_ns()
        slot[Counter.WORKER] = each.worker
        slot[Counter.READY_NS] = at_ns
        # It is found later than it began: one of a reload when the old one has ended.
        slot[Counter.STARTED_NS] = min(each.started_ns, at_ns) if each.started_ns > 0 else at_ns
        slot[Counter.PID] = each.pid
        slot[Counter.STOPPED_NS] = 0
        slot[Counter.ROLE] = Role.SERVER if each.behind is None else Role.BACKEND
        self._describe(each)
        limit = slot[Counter.NOFILE_SOFT_COUNT]
        detail = (
            f"worker {each.worker}: {each.command}, {each.own_count} descriptors of {limit} its own"
        )
        return "server_process", each.pid, detail

    def _let_go(self, departed: Departed) -> None:
        """A process that ended loses its slot to another one."""
        before = next(each for each in self.held if each.slot_index == departed.slot)
        self.held.remove(before)
        self._departed.append((departed, before.end))

    def _find_acceptors(self) -> None:
        """Tells processes that accept for others from workers; the last look counts."""
        if not self._is_loaded:
            return
        fronts = [each for each in self.held if each.behind is None]
        alive = [each for each in fronts if not each.ended_ns]
        children: dict[int, list[int]] = {}
        for each in fronts:
            children.setdefault(each.parent_pid, []).append(each.slot[Counter.OPEN_COUNT])
        # Connections of processes that have no listener to accept from: of who has it, when any.
        served = sum(each.slot[Counter.OPEN_COUNT] for each in alive if not each.owns_listener)
        for each in alive:
            held = children.get(each.pid, [])
            served_by_others = served if each.owns_listener else 0
            if not held and not served_by_others:
                continue
            own = each.slot[Counter.OPEN_COUNT]
            accepts = bool(held) and own <= sum(held) / len(held)
            accepts |= own <= _PASSING_SHARE * served_by_others
            each.slot[Counter.ROLE] = Role.ACCEPTOR if accepts else Role.SERVER

    def _take_ends(self, now_s: float) -> list[tuple[str, int, str]]:
        news: list[tuple[str, int, str]] = []
        for pid in self._ends.ended():
            each = next(each for each in self.held if each.pid == pid and not each.ended_ns)
            since_s = self._ended_at_s.setdefault(pid, now_s)
            status = self._ends.wait_status(pid)
            if status is None:
                status = process_tree.zombie_status(pid)
            if pid in self.known:
                code, number = self.known[pid]
            elif status is not None:
                exited = os.WIFEXITED(status)
                code = os.WEXITSTATUS(status) if exited else -1
                number = 0 if exited else os.WTERMSIG(status)
            elif now_s - since_s < _STATUS_WAIT_S:
                continue  # it is a zombie until its parent looks
            else:
                code, number = -1, 0
            self._forget(pid)
            self._end(each, self._clock_ns() - int((now_s - since_s) * 1e9), code, number)
            how = f"signal {number}" if number else f"status {code}" if code >= 0 else "unseen"
            held = each.slot[Counter.OPEN_COUNT]
            # of a proxy two for each connection: which is which nobody can see any more
            detail = f"{each.command}, {how}, held {held} descriptors of connections"
            news.append(("process_exited", pid, detail))
        return news

    def _forget(self, pid: int) -> None:
        self._ends.forget(pid)
        self._ended_at_s.pop(pid, None)
        self.known.pop(pid, None)
        self._listening.discard(pid)

    def _end(self, each: Held, ended_ns: int, status: int, number: int) -> None:
        each.ended_ns = each.slot[Counter.STOPPED_NS] = ended_ns
        each.end = ProcessEnd(each.pid, each.slot_index, ended_ns, status, number)
        self._slots.give_back(each.slot_index, self._now_s())
