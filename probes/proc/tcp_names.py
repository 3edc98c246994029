"""Names of TCP states and socket sides by the numbers that the kernel and our programs use."""

from __future__ import annotations

TCP_STATES = (  # include/net/tcp_states.h
    "NONE",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
    "BOUND_INACTIVE",
)
SIDES = ("other", "server", "client")  # SIDE_* of probes/bpf/common.h


def state_name(number: int) -> str:
    """The name without ``TCP_``, ``STATE_<n>`` for one that is newer than this table."""
    return TCP_STATES[number] if number < len(TCP_STATES) else f"STATE_{number}"
