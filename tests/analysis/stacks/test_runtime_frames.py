"""Frames of other runtimes: which say what the program does, which thread is which."""

import pandas as pd
import pytest

from analysis.frames.run_view import RunView
from analysis.stacks.accept_caller import accept_caller
from analysis.stacks.function_shares import function_name
from analysis.stacks.hot_thread import thread_kind
from analysis.stacks.runtime_frames import (
    is_named,
    is_own_code,
    jvm_name,
    naming_advice,
    node_script,
    runtime_of,
    unnamed_share,
)
from analysis.summary import summarise

# As probes.symbols.symbols names them; captured from Node 20.20 under perf events.
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

# From OpenJDK 17.0.15 of Debian, -XX:+PreserveFramePointer, with the map of jcmd
JAVA = (
    "start_thread;thread_native_entry;Thread::call_run;JavaThread::thread_main_inner;thread_entry;"
    "JavaCalls::call_virtual;JavaCalls::call_helper"
)
JAVA_MAIN = (
    "start_thread;ThreadJavaMain;JavaMain;jni_CallStaticVoidMethod;jni_invoke_static;"
    "JavaCalls::call_helper;StubRoutines (1)_[j];Interpreter_[j]"
)
TURN = JAVA + ";StubRoutines (1)_[j];Interpreter_[j];Interpreter_[j];HotServer::turn_[j]"


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
    advice = naming_advice([(WITHOUT_MAP, 90), (NODE, 10)])
    assert advice.commands == ("node --perf-basic-prof server.js",)
    assert "JavaScript" in advice.sentence
    assert unnamed_share([(WITHOUT_MAP, 90), (NODE, 10)]) == 0.9
    assert naming_advice([(WITHOUT_MAP, 90), (WITH_MAP, 10)]) is None
    advice = naming_advice([(WITHOUT_MAP, 90)], command="node server.cjs")
    assert advice.commands == ("node --perf-basic-prof server.cjs",)
    assert naming_advice([("main;work;[anon]+0x5", 10)]) is None  # nothing is known to help


@pytest.mark.parametrize(
    ("stacks", "commands"),
    [
        ([(TURN, 90), (JAVA + ";[anon]+0x5", 10)], []),
        # walkable, no map; not walkable: the compiler threads alone say that it is a JVM
        ([(JAVA + ";[anon]+0xcc8;[anon]+0x5", 90)], ["jcmd HotServer Compiler.perfmap"]),
        (
            [("[anon]+0x76ad", 90), (JAVA + ";[anon]+0xcc8;[anon]+0x5", 9)],  # interpreted
            ["-XX:+PreserveFramePointer", "jcmd HotServer Compiler.perfmap"],
        ),
        # the map is there, and the frames below it are not; or newer code is
        (
            [("HotServer::turn_[j]", 90), (TURN, 3)],
            ["-XX:+PreserveFramePointer", "jcmd HotServer Compiler.perfmap"],
        ),
        ([(TURN, 40), (JAVA + ";[anon]+0x5", 60)], ["jcmd HotServer Compiler.perfmap"]),
    ],
)
def test_a_jvm_is_advised_what_its_stacks_lack(stacks, commands):
    advice = naming_advice(stacks, "HotServer")
    assert len(commands) == len(advice.commands if advice else ())
    for wanted, command in zip(commands, advice.commands if advice else (), strict=True):
        assert wanted in command
        assert wanted in advice.sentence


def test_jcmd_finds_a_jvm_by_what_is_known_of_it():
    assert jvm_name("java org.acme.Server", 812, is_alive=True) == "812"
    assert jvm_name("java org.acme.Server", 812, is_alive=False) == "org.acme.Server"
    assert jvm_name("java -jar", 812, is_alive=False) == "$(pgrep -n java)"


def test_what_a_stranger_calls_itself_is_one_word_of_a_command():
    hostile = ";curl x|sh;"
    assert jvm_name(f"java {hostile}", 812, is_alive=False) == f"'{hostile}'"
    assert node_script(f"node {hostile}.js") == f"'{hostile}.js'"
    assert node_script("node server.cjs") == "server.cjs"


def test_frames_of_the_jvm_itself_are_nobody_s_work():
    assert [frame for frame in TURN.split(";") if is_own_code(frame)] == ["HotServer::turn_[j]"]


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
            *("node", False, "V8 worker thread, garbage collector"),
        ),
        (
            "node::(anonymous namespace)::PlatformWorkerThread;v8::internal::compiler::Run",
            *("node", False, "V8 worker thread"),
        ),
        ("x", "G1 Conc#0", False, "garbage collector"),
        ("x", "GC Thread#3", False, "garbage collector"),
        ("x", "VM Thread", False, "VM thread"),
        ("x", "C2 CompilerThre", False, "compiler thread"),
        ("x", "VM Periodic Tas", False, "JVM service thread"),
        (JAVA_MAIN + ";HotServer::turn_[j]", "java", False, "main thread"),
        (JAVA_MAIN + ";epoll_wait", "java", False, "main thread, event loop"),
        (JAVA + ";Interpreter_[j]", "busy-turns", False, "Java thread"),
        (JAVA + ";sun.nio.ch.SelectorImpl::select_[j]", "io-1", False, "event loop"),
        ("[anon]+0x1", "nioEventLoopGro", False, "event loop"),
        ("runtime.goexit;runtime.gcBgMarkWorker", "server", True, "Go thread"),
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


@pytest.mark.parametrize(
    ("stack", "thread", "on", "waits"),
    [
        (WITH_MAP, "node", "turn (/srv/a.js), on its thread", "none of its connections is served"),
        (TURN, "busy-turns", "HotServer::turn, on its Java thread", "that thread serves no"),
        (WITH_MAP + ";deflate", "node", "turn (/srv/a.js), on its thread", "is served"),
        ("worker;uv__fs_work;deflate", "node", "deflate, on its libuv pool thread", "It serves no"),
    ],
)
def test_a_hot_thread_beside_the_event_loop_is_not_said_to_block_it(hot, stack, thread, on, waits):
    hot.sampled(stack.replace("uv_run;", ""), tid=812, thread=thread)
    (finding,) = [f for f in summarise(hot.frames()).findings if f.cause == "hot-worker-code"]
    assert f"{on} ({thread}, tid 812)" in finding.explanation
    assert waits in finding.explanation
    assert ("off the event loop" in finding.fix[0].command) is (waits.endswith("is served"))


COLLECTING = (
    ";Builtins_CEntry_Return1_ArgvOnStack_NoBuiltinExit;"
    "v8::internal::Runtime_AllocateInOldGeneration;v8::internal::Heap::CollectGarbage"
)
MARKING = (
    "start_thread;node::(anonymous namespace)::PlatformWorkerThread;"
    "v8::platform::DefaultJobWorker::Run;v8::internal::ConcurrentMarking::RunMajor"
)


REPLACES = WITH_MAP + ";replaceSome (/srv/a.js:12)_[j]"


def collecting(hot, above=REPLACES, frame="v8::internal::MarkCompactCollector::MarkLiveObjects"):
    hot.sampled(above + COLLECTING + ";" + frame, count=15)
    hot.sampled(above, count=5)
    hot.sampled(MARKING, tid=803, count=10)
    hot.sampled(MARKING, tid=804, count=10)
    (found,) = [f for f in summarise(hot.frames()).findings if f.cause == "garbage-collection"]
    return found


def test_who_collects_and_who_allocated_is_read_from_the_stacks(hot):
    finding = collecting(hot)
    assert finding.value_of("loop_collector_samples") == 75
    assert finding.value_of("helper_collector_samples") == pytest.approx(100 * 20 / 35)
    assert "runs on 2 threads of the runtime beside it" in finding.explanation
    assert "began in replaceSome (/srv/a.js), which allocates" in finding.explanation
    assert finding.fix[0].command == "node --max-old-space-size=128 server.js"
    assert "replaceSome" in finding.fix[1].command
    assert "gc.freeze" not in str(finding.fix)


def test_a_jvm_that_collects_is_given_a_larger_heap(hot):
    work = "start_thread;thread_native_entry;Thread::call_run;GangWorker::loop;"
    for tid in (811, 812):
        hot.sampled(work + "G1FullGCMarkTask::work", tid=tid, thread="GC Thread#0", count=15)
    hot.sampled(JAVA_MAIN + ";[anon]+0x5", tid=801, thread="java", count=5)
    (finding,) = [f for f in summarise(hot.frames()).findings if f.cause == "garbage-collection"]
    assert "The runtime collects on 2 threads of its own" in finding.explanation
    assert "its threads are stopped" in finding.explanation
    assert finding.fix[0].command.startswith("export JAVA_TOOL_OPTIONS=-Xmx128m")
    assert not any("perfmap" in fix.command for fix in finding.fix)


def test_young_collections_of_node_get_another_switch_and_nameless_ones_advice(hot):
    finding = collecting(hot, WITHOUT_MAP, "v8::internal::ScavengerCollector::CollectGarbage")
    # the concurrent markers are two thirds as many: what the loop stands still for decides
    assert finding.fix[0].command == "node --max-semi-space-size=64 server.js"
    assert finding.fix[-1].command == "node --perf-basic-prof server.js"
    assert "which allocates" not in finding.explanation


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
