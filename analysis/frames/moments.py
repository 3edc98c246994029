"""What happened when: the recorded events, the first failure of each kind, full port pools."""

from __future__ import annotations

import pandas as pd

from analysis.frames.ports import pool_use, port_range
from analysis.frames.run_view import RunView

COLUMNS = ["at_s", "moment", "pid", "role", "worker", "detail"]
_QUIET = "probes_ready|server_listens|phase_.*"


def df_moments(view: RunView, errors: pd.DataFrame) -> pd.DataFrame:
    """The moments that tell a reader what came first, earliest first.

    Args:
        view: The run.
        errors: From ``failures.df_errors``; the benign ones are no moments.

    Returns:
        at_s, moment (an event of the run; ``first_failure``: the first of a side, system call
        and errno, with the process that met it; ``port_pool_full``), pid, role, worker, detail.
    """
    events = view.frames["events"]
    loud = events[~events["event"].str.fullmatch(_QUIET)]
    frame = view.with_who(loud.assign(at_s=view.seconds_of(loud["at_ns"])))
    parts = [frame.rename(columns={"event": "moment"})[COLUMNS]]
    parts += [_first_failures(errors), _full_pools(view)]
    known = [part for part in parts if len(part)]
    if not known:
        return pd.DataFrame(columns=COLUMNS)
    moments = pd.concat(known, ignore_index=True)
    return moments.sort_values("at_s", kind="stable", ignore_index=True)


def _first_failures(errors: pd.DataFrame) -> pd.DataFrame:
    harmful = errors[~errors["benign"].astype(bool) & errors["first_s"].notna()]
    rows = []
    for key, part in harmful.groupby(["side", "syscall", "errno_name"], sort=False):
        _, syscall, errno_name = key
        first = part.iloc[int(part["first_s"].to_numpy().argmin())]
        total, processes = int(part["event_count"].sum()), part["pid"].nunique()
        rows.append(
            {
                "at_s": float(first["first_s"]),
                "moment": "first_failure",
                "pid": int(first["pid"]),
                "role": first["role"],
                "worker": int(first["worker"]),
                "detail": f"{syscall} {errno_name}: first of {total:,} in {processes} "
                + ("process" if processes == 1 else "processes"),
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def _full_pools(view: RunView) -> pd.DataFrame:
    """When each pool of local ports had none left, from the connection records."""
    low, high = port_range(view)
    range_count = high - low + 1
    is_early = view.plan.get("bind") == "early"  # then a pool is an address, not a destination
    rows = []
    for pool in [] if is_early else pool_use(view):
        full = pool.used_count >= range_count
        if full.any():
            rows.append(
                {
                    "at_s": float(pool.begun_s[full.argmax()]),
                    "moment": "port_pool_full",
                    "pid": 0,
                    "role": "",
                    "worker": -1,
                    "detail": f"all {range_count:,} ports from {pool.source_address} to port "
                    f"{pool.destination_port} were in use",
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)
