"""Frames of other runtimes: which say what the program does, which thread is which."""

import pandas as pd
import pytest

from analysis.accept_caller import accept_caller
from analysis.hot_thread import thread_kind
from analysis.hot_worker import function_name
from analysis.run_view import RunView
from analysis.runtime_frames import (
    is_named,
    is_own_code,
    naming_advice,
    runtime_of,
    unnamed_share,
)
from analysis.summary import summarise

# As probes.symbols names them; captured from Node 20.20 under perf events.
NODE = (
    "__libc_start_call_main;node::Start;node::NodeMainInstance::Run;node::SpinEventLoopInternal;"
    "uv_run;uv__run_timers;node::Environment::RunTimers;v8::Function::Call;"
    "v8::internal::Execution::Call;v8::internal::(anonymous namespace)::Invoke;Builtins_JSEntry;"
    "Builtins_JSEntryTrampoline"
)
WITHOUT_MAP = NODE + ";[anon]+0x2b17a;[anon]+0x35754"
WITH_MAP = (
    NODE + ";listOnTimeout (node:internal/timers:524)_[j];<anonymous> (/srv/a.js:9)_[j];"
    "turn (/srv/a.js:3)_[j]"
)


def test_the_program_s_own_frames_of_a_node_stack_are_told_from_its_loop():
    own = [frame for frame in WITH_MAP.split(";") if is_own_code(frame)]
    assert own == ["<anonymous> (/srv/a.js:9)_[j]", "turn (/srv/a.js:3)_[j]"]
    assert not [frame for frame in WITHOUT_MAP.split(";") if is_own_code(frame)]


@pytest.mark.parametrize(
    "frame",
    [
        *("main", "runtime.goexit", "epoll_wait", "do_syscall_64_[k]", "libc.so.6+0x27249"),
        *("[unknown]", "_PyEval_EvalFrameDefault", "uv__io_poll", "main.main", "start_thread"),
    ],
)
def test_frames_of_every_program_say_nothing(frame):
    assert not is_own_code(frame)


@pytest.mark.parametrize(
    "frame",
    ["adler32", "main.serve", "uv__server_io", "turn (/srv/a.py)_[j]", "v8::Exception::Error"],
)
def test_frames_of_work_do(frame):
    assert is_own_code(frame)
    assert is_named(frame)


@pytest.mark.parametrize(
    ("frame", "name"),
    [
        ("turn (/srv/a.js:3)_[j]", "turn (/srv/a.js)"),
        ("turn (/srv/a.py)_[j]", "turn (/srv/a.py)"),
        ("<anonymous> (/srv/a.js:9)_[j]", "<anonymous> (/srv/a.js:9)"),  # told apart by its line
        ("v8::internal::Heap::CollectGarbage", "v8::internal::Heap::CollectGarbage"),
    ],
)
def test_one_function_has_one_name(frame, name):
    assert function_name(frame) == name


def test_runtimes_are_known_by_their_frames():
    assert runtime_of([WITH_MAP]) == "node"
    assert runtime_of(["runtime.goexit;main.main;main.serve"]) == "go"
    assert runtime_of(["libjvm.so+0x1234;Interpreter_[j]"]) == "java"
    assert runtime_of(["_start;main;_PyEval_EvalFrameDefault"]) == "python"
    assert runtime_of(["_start;main;work"]) == ""


def test_node_without_a_map_is_advised_to_write_one():
    command, sentence = naming_advice([(WITHOUT_MAP, 90), (NODE, 10)])
    assert command == "node --perf-basic-prof server.js"
    assert "JavaScript" in sentence
    assert unnamed_share([(WITHOUT_MAP, 90), (NODE, 10)]) == 0.9
    assert naming_advice([(WITHOUT_MAP, 90), (WITH_MAP, 10)]) is None
    assert naming_advice([("main;work;[anon]+0x5", 10)]) is None  # nothing is known to help


def rows(*stacks, thread="node"):
    return pd.DataFrame(
        {"user_stack": list(stacks), "thread": thread, "sample_count": [1] * len(stacks)}
    )


@pytest.mark.parametrize(
    ("stack", "thread", "is_main", "kind"),
    [
        (NODE, "node", True, "main thread, event loop"),
        ("node::worker::Worker::Run;uv_run", "node", False, "worker_threads thread"),
        ("start_thread;worker;uv__fs_work", "node", False, "libuv pool thread"),
        ("start_thread;x", "libuv-worker", False, "libuv pool thread"),
        (
            "node::(anonymous namespace)::PlatformWorkerThread;v8::internal::Sweeper::Sweep",
            *("node", False, "garbage collector"),
        ),
        (
            "node::(anonymous namespace)::PlatformWorkerThread;v8::internal::compiler::Run",
            *("node", False, "V8 worker thread"),
        ),
        ("x", "G1 Conc#0", False, "garbage collector"),
        ("start_thread;uv_run;x", "server", False, "event loop"),
        ("_start;main;work", "a.out", True, "main thread"),
        ("start_thread;work", "a.out", False, "thread"),
    ],
)
def test_a_thread_is_named_by_what_it_is_for(stack, thread, is_main, kind):
    assert thread_kind(rows(stack, thread=thread), is_main=is_main) == kind


@pytest.fixture
def hot(build):
    """A lone worker at a full core through the hold; the stacks are the test's."""
    build.stages(2.0, 4.0)
    build.manifest["target_connections"] = 100
    build.process("server", 0, nofile_soft_count=20_000)
    build.cpu(800, 99, from_s=0.0, until_s=6.0)
    build.health("cpu_stacks", "process_samples")

    def sampled(stack, *, tid=800, thread="node", count=40):
        for second in range(6):
            build.add(
                "cpu_stacks",
                at_s=second + 0.5,
                pid=800,
                tid=tid,
                thread=thread,
                user_stack=stack,
                sample_count=count,
                period_ns=20_408_163,
            )

    build.sampled = sampled
    return build


def test_hot_code_without_names_says_what_would_name_it(hot):
    hot.sampled(WITHOUT_MAP)
    summary = summarise(hot.frames())
    (finding,) = [f for f in summary.findings if f.cause == "hot-worker-code"]
    assert finding.fix[0].command == "node --perf-basic-prof server.js"
    assert any("--perf-basic-prof" in line for line in finding.missing)
    assert finding.confidence == "low"
    assert "main thread, event loop (node, tid 800)" in finding.explanation
    assert summary.hot_worker["threads"][0]["kind"] == "main thread, event loop"


def test_the_hot_function_and_its_thread_come_from_the_map(hot):
    hot.sampled(WITH_MAP)
    hot.sampled("node::worker::Worker::Run;uv_run;other", tid=807, count=4)
    summary = summarise(hot.frames())
    (finding,) = [f for f in summary.findings if f.cause == "hot-worker-code"]
    assert "turn (/srv/a.js)" in finding.sentence
    assert not finding.missing
    assert [t["tid"] for t in summary.hot_worker["threads"]] == [800, 807]
    assert summary.hot_worker["threads"][0]["function"] == "turn (/srv/a.js)"
    assert summary.hot_worker["naming_advice"] == ""


def test_who_calls_accept_is_read_from_the_calls_that_failed(hot):
    hot.sampled("main;uv_run;uv__io_poll;epoll_pwait", count=30)
    hot.sampled("main;uv_run;uv__io_poll;uv__server_io;accept4", count=10)
    hot.add(
        "failure_stacks",
        at_s=2.0,
        pid=800,
        tid=800,
        syscall="accept4",
        errno=24,
        user_stack="libc.so.6+0x1;main;uv_run;uv__io_poll;uv__server_io;libc.so.6+0x5;accept4",
    )
    view = RunView(hot.frames())
    caller = accept_caller(view, 800, (0.0, 6.0))
    assert caller.function == "uv__server_io"
    assert caller.path == ("main", "uv_run", "uv__io_poll", "uv__server_io")
    assert caller.share_pct == 25
    assert accept_caller(view, 801, (0.0, 6.0)) is None
