"""What frames say of their runtime: which it is, which frames are its own and which the program's.

Every rule here is a list of names, read in the sources that the comments name. A runtime that
renames a function loses its rule and nothing else.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from typing import NamedTuple

KERNEL_SUFFIX, MAP_SUFFIX = "_[k]", "_[j]"

_OFFSET = re.compile(r"\+0x[0-9a-f]+$")
_UNNAMED = re.compile(r"\[unknown\]|\[anon\]|\[heap\]|/?memfd:")
_ENTRY = re.compile(
    # libc and the loader
    r"_start|main|__libc_start\w*|start_thread|clone3?|thread_start"
    # libuv: src/unix/core.c, linux.c, stream.c, threadpool.c
    r"|uv_run|uv__run_\w+|uv__io_poll|uv__async_io|uv__work_done|uv__stream_io|uv__read|uv__finalize\w*"
    # node: src/node_main_instance.cc, src/api/embed_helpers.cc, src/api/callback.cc
    r"|node::(?:Start|NodeMainInstance::Run|SpinEventLoopInternal|MakeCallback|InternalMakeCallback"
    r"|AsyncWrap::MakeCallback|Environment::(?:CheckImmediate|RunTimers)|InternalCallbackScope::\w+"
    r"|worker::Worker::.*)"
    # V8: how it calls JavaScript, and its interpreter
    r"|v8::Function::Call|v8::internal::(?:Execution::\w+|\(anonymous namespace\)::Invoke)"
    # V8: how JavaScript calls C++ (src/builtins/builtins-api.cc, src/api/api-arguments-inl.h)
    r"|v8::internal::(?:Builtin_\w+|FunctionCallbackArguments::\w+)"
    r"|v8::internal::\(anonymous namespace\)::HandleApiCallHelper(?:<\w+>)?"
    r"|Builtins_(?:JSEntry|Call|Construct|Interpreter|CEntry|JSConstruct|JSBuiltins|Async|Run)\w*"
    r"|Builtin:\w+|BytecodeHandler:\w+"
    r"|(?:listOnTimeout|process\w+|emit|onStreamRead|callbackTrampoline|\w*[hH]andler) \(node:.*"
    # CPython's interpreter loop and start-up
    r"|_?Py(?:Eval|Run|Object_(?:Vectorcall|Call|MakeTpCall)|Function_Vectorcall|_Run\w+|_BytesMain)\w*"
    r"|_Py_(?:Builtin|Vector)?Call\w+"
    r"|pymain_\w+|run_(?:mod|eval_code_obj)|py_trampoline_evaluator|cfunction_\w+|method_vectorcall\w*"
    # Go: src/runtime/proc.go, netpoll_epoll.go
    r"|runtime\.(?:goexit|main|mcall|mstart\w*|schedule|park_m|findRunnable|netpoll\w*|epollwait|rt0_go)"
    r"|(?:internal/)?(?:runtime/)?(?:internal/)?syscall\.\w*Syscall\w*|main\.main"
    # HotSpot: how it calls Java, its interpreter, the code that it makes for itself
    r"|JavaCalls::\w+|JavaThread::\w+|call_stub|Interpreter|thread_native_entry|Thread::call_run"
    r"|(?:Thread)?JavaMain|thread_entry|jni_\w+|StubRoutines \([^)]*\)|I2C/C2I adapters|\w+Blob"
    r"|vtable chunks|[\w ]+ [Ss]tub|java\.lang\.Thread::run\w*"
)
_WAIT = re.compile(
    r"epoll_p?wait\d?|__?(?:GI_)?epoll_\w+|poll|select|futex|pthread_cond_\w+|kevent"
)

_TO_UNNAMED_JAVA = re.compile(r"JavaCalls::\w+;\[anon\]")
_FROM_ITS_BEGIN = re.compile(
    r"(?:^|;)(?:JavaCalls::|JavaThread::|libjvm\.so\+|call_stub|StubRoutines \()"
)

_RUNTIMES = (
    ("node", re.compile(r"(?:^|;)(?:node::|v8::internal::|Builtins_JSEntry)")),
    ("java", re.compile(r"(?:^|;)(?:libjvm\.so\+|JavaCalls::|JavaThread::|StubRoutines \()")),
    ("go", re.compile(r"(?:^|;)runtime\.(?:goexit|mcall|mstart|main|schedule|systemstack)")),
    ("python", re.compile(r"(?:^|;)_PyEval_EvalFrameDefault")),
)


def is_named(frame: str) -> bool:
    """Whether a frame has a function's name, not only a module and an offset."""
    return not (_OFFSET.search(frame) or _UNNAMED.match(frame))


def is_own_code(frame: str) -> bool:
    """Whether a frame says what the program does: no kernel, no loop, no entry, no mere offset."""
    if frame.endswith(KERNEL_SUFFIX) or not is_named(frame):
        return False
    bare = frame.removesuffix(MAP_SUFFIX)
    return not (_ENTRY.fullmatch(bare) or _WAIT.fullmatch(bare))


def runtime_of(stacks: Iterable[str]) -> str:
    """node, java, go or python by the native frames of a process; '' for another program."""
    text = ";".join(stacks)
    return next((name for name, frame in _RUNTIMES if frame.search(text)), "")


def unnamed_share(stacks: Iterable[tuple[str, int]]) -> float:
    """Part of the samples, 0 to 1, that have run-time-made code without a name in their stack.

    Args:
        stacks: Frames joined by ``;`` and how many samples.
    """
    total = unnamed = 0
    for stack, count in stacks:
        total += count
        unnamed += count * any(_UNNAMED.match(frame) for frame in stack.split(";"))
    return unnamed / total if total else 0.0


class NamingAdvice(NamedTuple):
    """What would name frames that have no names.

    Attributes:
        commands: To run, in this order.
        sentence: The same for people.
    """

    commands: tuple[str, ...]
    sentence: str


_LEAST_UNNAMED = 0.05
_MOSTLY = 0.5
_NEARLY_ALL = 0.9
_NODE_UNNAMED = (
    "JavaScript functions have no names: start the server with --perf-basic-prof and run again"
)
_JAVA_STACKS = "export JAVA_TOOL_OPTIONS=-XX:+PreserveFramePointer  # and start the server again"


def naming_advice(
    stacks: Iterable[tuple[str, int]], jvm: str = "PID", command: str = ""
) -> NamingAdvice | None:
    """What would name the frames of code that a runtime made.

    Args:
        stacks: Native stacks of one process and their samples.
        jvm: How jcmd can find it, where it is a JVM (``jvm_name``).
        command: What people call the process, as ``node server.cjs``.

    Returns:
        None where its frames have names, or nothing is known to help.
    """
    rows = [(stack, count) for stack, count in stacks if stack]
    runtime = runtime_of(stack for stack, _ in rows)
    has_map = any(MAP_SUFFIX in stack for stack, _ in rows)
    share = unnamed_share(rows)
    if runtime == "java":
        return _java_advice(rows, share, has_map=has_map, jvm=jvm)
    if runtime == "node" and not has_map and share >= _LEAST_UNNAMED:
        return NamingAdvice((f"node --perf-basic-prof {node_script(command)}",), _NODE_UNNAMED)
    return None


def node_script(command: str) -> str:
    """What a node runs, of what people call it; ``server.js`` where that does not say it."""
    name, _, script = command.partition(" ")
    return shlex.quote(script) if name == "node" and script[:1] not in ("", "-") else "server.js"


def _java_advice(
    rows: Sequence[tuple[str, int]], share: float, *, has_map: bool, jvm: str
) -> NamingAdvice | None:
    write_map = f"jcmd {jvm} Compiler.perfmap"
    once_warm = f"{write_map}  # while it runs, once it is warm"
    if has_map:
        named = [(stack, count) for stack, count in rows if MAP_SUFFIX in stack]
        rooted_count = sum(count for stack, count in named if _FROM_ITS_BEGIN.search(stack))
        if rooted_count < _MOSTLY * sum(count for _, count in named):
            return NamingAdvice(
                (_JAVA_STACKS, once_warm),
                "Java methods have no callers in these stacks: start the JVM with "
                f"-XX:+PreserveFramePointer, and write the map with {write_map}",
            )
        if share >= _MOSTLY:
            return NamingAdvice(
                (once_warm,),
                f"{100 * share:.0f} % of the samples are in Java methods that were compiled after "
                f"the map was written: write it again with {write_map}",
            )
        return None
    if share < _LEAST_UNNAMED:
        return None
    unnamed_count = sum(count for stack, count in rows if "[anon]" in stack)
    reached_count = sum(count for stack, count in rows if _TO_UNNAMED_JAVA.search(stack))
    if reached_count >= _NEARLY_ALL * unnamed_count:  # the interpreter has frames in any case
        return NamingAdvice(
            (once_warm,),
            f"Java methods have no names: write a map with {write_map} (JDK 17 and newer) while "
            "the server is watched",
        )
    return NamingAdvice(
        (_JAVA_STACKS, once_warm),
        "Java methods have no names: start the JVM with -XX:+PreserveFramePointer, and write a map "
        f"with {write_map} (JDK 17 and newer) while it is watched",
    )


def jvm_name(command: str, pid: int, *, is_alive: bool) -> str:
    """What jcmd takes for a JVM: its pid while it lives, else its main class, else the newest JVM.

    Args:
        command: What people call it, as ``java org.acme.Server``.
        pid: Its pid.
        is_alive: It goes on after the run.
    """
    if is_alive:
        return str(pid)
    main_class = command.removeprefix("java ")
    if main_class in ("", "java") or main_class.startswith("-"):
        return "$(pgrep -n java)"
    return shlex.quote(main_class)
