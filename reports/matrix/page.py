"""Writes matrix.html: many runs on one page, without network, in the look of report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analysis.evidence import sentence_of
from analysis.ladder.limit_words import limit_of
from analysis.matrix.confusion import Confusion, confusion
from analysis.matrix.figures import SHOWN, FigureName
from analysis.matrix.matrix import HOST_LIMITS, Move, Outcome, RowResult, effects
from analysis.stats.spread import Spread
from probes.contract.rundir import REPORT, VERDICT
from reports.elements import formatting
from reports.elements.tables import Cell, Heading, Table
from reports.matrix.terminal import cell_text
from reports.page.page import content_security_policy

_STYLES = ("page.css", "matrix.css")
_SCRIPTS = ("page.js",)
_SHOWN_EVIDENCE_COUNT = 4


@dataclass(frozen=True, slots=True)
class MatrixFacts:
    """What the page says about the matrix as a whole.

    Attributes:
        name: Of the scenario, or ``vary``.
        shows: One line for people.
        status: running, interrupted or finished.
        started: Wall time, ISO 8601.
        seed: That the order was shuffled with.
        repeats: Runs of each row.
        command: That started it.
        directory: Where it is.
        host: Kernel, cores, memory, versions.
        log_scale: Connections here for one of the log's; None: nothing is scaled.
        scale_words: The same as a sentence, '' for none.
        left_count: Runs not made yet.
        is_varied: Made by --vary: every value with every other.
    """

    name: str
    shows: str
    status: str
    started: str
    seed: int
    repeats: int
    command: str
    directory: str
    host: Mapping[str, Any]
    log_scale: float | None
    scale_words: str
    left_count: int
    is_varied: bool


def render(facts: MatrixFacts, results: Sequence[RowResult]) -> str:
    """The whole page as HTML.

    Args:
        facts: The matrix.
        results: From ``analysis.matrix.matrix.compare``.
    """
    css, script = _assets(_STYLES), _assets(_SCRIPTS)
    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("matrix.html.j2").render(
        **build_context(facts, results),
        # Our own files, never a stranger's text; the policy names exactly these two by hash.
        css=Markup(css),  # noqa: S704
        script=Markup(script),  # noqa: S704
        policy=content_security_policy(css, script),
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def _assets(names: Sequence[str]) -> str:
    folder = files("reports") / "assets"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


def build_context(facts: MatrixFacts, results: Sequence[RowResult]) -> dict[str, Any]:
    """Everything that the template shows, as text and numbers."""
    table = confusion(results)
    is_diagnosis = bool(table.rows) and facts.log_scale is None
    highest = max((_most(result) for result in results), default=0.0)
    rows = [_row(index, result, facts, highest) for index, result in enumerate(results)]
    navigation = [("verdict", "Verdict"), ("rows", "Rows"), ("details", "Details")]
    effect_tables = _effect_tables(results) if facts.is_varied else []
    if effect_tables:
        navigation.insert(2, ("effects", "Effects"))
    if is_diagnosis:
        navigation.insert(2, ("confusion", "Confusion"))
    return {
        "facts": facts,
        "verdict": _verdict(facts, results),
        "rows": rows,
        "has_log": any(result.spec.log for result in results),
        "has_moves": any(result.move is not None for result in results),
        "has_expectations": any(result.held is not None for result in results),
        "effects": effect_tables,
        "confusion": _confusion_table(table) if is_diagnosis else None,
        "confusion_words": _confusion_words(table),
        "host_facts": _host_facts(facts),
        "navigation": [*navigation, ("method", "Method")],
    }


def _most(result: RowResult) -> float:
    log = (result.spec.log_ceiling or 0.0) * result.spec.scale
    return max(result.ceiling.high if result.ceiling.count else 0.0, log)


def _verdict(facts: MatrixFacts, results: Sequence[RowResult]) -> dict[str, Any]:
    judged = [result for result in results if result.held is not None]
    held = sum(bool(result.held) for result in judged)
    runs = sum(len(result.done) for result in results)
    failed = sum(o.state == "failed" for result in results for o in result.outcomes)
    is_good = held == len(judged) and not facts.left_count and not failed
    if judged:
        headline = f"{held} of {len(judged)} rows were as expected"
    else:
        headline = f"{len(results)} rows, {runs} runs"
    badge = "As expected" if is_good else "Not all as expected"
    if facts.left_count:
        badge = "Not finished"
        headline += f"; {facts.left_count} runs are left"
    elif not judged:
        badge = "Compared" if is_good else "Some runs failed"
    wrong = [
        {"id": r.spec.id, "anchor": f"row-{i}", "complaints": r.complaints}
        for i, r in enumerate(results)
        if r.complaints
    ]
    return {"badge": badge, "headline": headline, "tone": "good" if is_good else "", "wrong": wrong}


def _row(index: int, result: RowResult, facts: MatrixFacts, highest: float) -> dict[str, Any]:
    spec, shown = result.spec, result.shown
    ceiling = result.ceiling
    log_here = None if spec.log_ceiling is None else spec.log_ceiling * spec.scale
    return {
        "anchor": f"row-{index}",
        "id": spec.id,
        "log_row": spec.log_row,
        "shows": spec.shows,
        "log": spec.log,
        "note": spec.note,
        "happened": _sentence(shown),
        "error": next((o.error for o in result.outcomes if o.state == "failed"), ""),
        "cause": result.cause,
        "side": str(shown.verdict.get("side", "")) if shown else "",
        "causes": ", ".join(f"{name} in {n}" for name, n in result.causes.items())
        if len(result.causes) > 1
        else "",
        "also": [cause for cause in shown.named if cause != result.cause] if shown else [],
        "ceiling": _range(ceiling, "count"),
        "at_least": result.has_reached,
        "at_log_size": formatting.count(ceiling.median / spec.scale)
        if ceiling.count and spec.scale < 1
        else "",
        "log_ceiling": "" if spec.log_ceiling is None else formatting.count(spec.log_ceiling),
        "bar_share": ceiling.median / highest if ceiling.count and highest else 0.0,
        "log_share": None if log_here is None or not highest else log_here / highest,
        "move": None if result.move is None else _move(result.move, result, facts),
        "held": result.held,
        "complaints": result.complaints,
        "command": spec.command,
        "calibrated": _calibrated(shown),
        "tables": [t for t in (_worker_table(index, shown), _figure_table(index, result),
                               _rung_table(index, result.move), _run_table(index, result)) if t],
        "evidence": _evidence(shown),
        "fixes": _fixes(shown),
    }  # fmt: skip


def _calibrated(outcome: Outcome | None) -> str:
    if outcome is None or not outcome.calibrated:
        return ""
    said = outcome.calibrated
    return (
        f"{said['option']} was set to {said['value']:g}: in a trial just before, {said['of']} of "
        f"this machine was {said['trial']:.4g}"
    )


def _sentence(outcome: Outcome | None) -> str:
    """The verdict without its fix, which stands in the details."""
    if outcome is None:
        return ""
    said = outcome.verdict
    if "headline" not in said:  # recorded before the verdict was told in parts
        return str(said.get("sentence", ""))
    return sentence_of([str(said["headline"]), *map(str, said.get("consequences") or [])])


def _move(move: Move, result: RowResult, facts: MatrixFacts) -> dict[str, Any]:
    changed = ", ".join(move.changed) or "nothing"
    pct = move.delta_pct
    by = f"{move.delta_count:+,.0f}" + (f" ({pct:+,.1f} %)" if pct is not None else "")
    if move.direction == "none":
        short, words = "no change", f"stayed at {move.after:,.0f}"
    elif move.direction == "unknown":
        short, words = "not known", "is not known"
    else:
        short = by
        words = f"moved from {move.before:,.0f} to {move.after:,.0f}, {by}"
    if move.at_least and move.direction == "up":
        short = f"at least {by}"
        words += " at least: the target was reached"
    cause = (
        f"{move.cause_after} bound both"
        if move.cause_before == move.cause_after
        else f"{move.cause_before} bound before, {move.cause_after} after"
    )
    rungs = [
        f"{limit_of(rung.limit, f'a {rung.subject}' if rung.subject else '')} "
        f"from {rung.before:,.0f} to {rung.after:,.0f}"
        for rung in move.moved_rungs[:2]
    ]
    moved = f" Limits that moved: {'; '.join(rungs)}." if rungs else ""
    noise = f" Repeats: {move.noise}." if facts.repeats > 1 else ""
    return {
        "against": move.against,
        "short": short,
        "changed": changed,
        "words": f"With {changed}, the ceiling {words}. {cause[:1].upper()}{cause[1:]}."
        f"{moved}{noise}",
        "rungs": rungs,
        "tone": {"up": "good", "down": "warn"}.get(move.direction, ""),
    }


def _range(spread: Spread, unit: str) -> str:
    if not spread.count:
        return ""
    median = _number(spread.median, unit)
    if spread.count == 1 or spread.low == spread.high:
        return median
    return f"{median} ({_number(spread.low, unit)} to {_number(spread.high, unit)})"


def _number(value: float, unit: str) -> str:
    if unit in ("us", "ms"):
        return formatting.seconds(value / (1e6 if unit == "us" else 1e3))
    return formatting.quantity(value, unit)


def _worker_table(index: int, outcome: Outcome | None) -> Table | None:
    if outcome is None or not outcome.workers:
        return None
    total = sum(worker["peak_count"] for worker in outcome.workers) or 1
    rows = [
        [
            Cell(f"worker {worker['worker']}", worker["worker"]),
            Cell(formatting.count(worker["peak_count"]), worker["peak_count"],
                 worker["peak_count"] / worker["room_count"] if worker["room_count"] > 0 else None,
                 tone="bad" if worker["peak_count"] >= worker["room_count"] else ""),
            Cell(formatting.percent(100 * worker["peak_count"] / total)),
            Cell(formatting.count(worker["room_count"]), worker["room_count"]),
            Cell(formatting.count(worker["own_count"]), worker["own_count"]),
        ]
        for worker in outcome.workers
    ]  # fmt: skip
    headings = (
        Heading("Worker"),
        Heading("Most connections", "of its room", is_number=True),
        Heading("Share", "of all workers'", is_number=True),
        Heading("Room", "limit less own files", is_number=True),
        Heading("Own files", "", is_number=True),
    )
    return Table(f"workers-{index}", f"Connections of each worker, row {index + 1}", headings, rows)


def _figure_table(index: int, result: RowResult) -> Table | None:
    rows = []
    for name in SHOWN:
        spread = result.spread(name.name)
        if spread.count:
            rows.append([Cell(name.label), Cell(_range(spread, name.unit), spread.median)])
    headings = Heading("Figure"), Heading("Value", "100 % is one core", is_number=True)
    return (
        Table(f"figures-{index}", f"Figures of row {index + 1}", headings, rows) if rows else None
    )


def _rung_table(index: int, move: Move | None) -> Table | None:
    if move is None or not move.rungs:
        return None
    shown = [rung for rung in move.rungs if rung.limit not in HOST_LIMITS]

    def cell(value: float | None) -> Cell:
        return Cell(formatting.count(value) if value is not None else "not seen", value or -1.0)

    rows = [
        [
            Cell(limit_of(rung.limit, f"a {rung.subject}" if rung.subject else "")),
            cell(rung.before),
            cell(rung.after),
        ]
        for rung in shown
    ]
    headings = (
        Heading("Limit"),
        Heading(f"In {move.against}", "met at, connections", is_number=True),
        Heading("Here", "met at, connections", is_number=True),
    )
    return Table(f"rungs-{index}", f"The ladder before and after, row {index + 1}", headings, rows)


def _run_table(index: int, result: RowResult) -> Table | None:
    rows = []
    for outcome in result.outcomes:
        facts = outcome.facts
        href = f"{outcome.run}/{REPORT if outcome.has_page else VERDICT}"
        is_done = outcome.state == "done"
        cause = outcome.cause if is_done else f"did not run: {outcome.error}"
        rows.append(
            [
                Cell(f"run {outcome.repeat}", outcome.repeat, href=href if is_done else ""),
                Cell(cause, is_code=is_done, tone="" if is_done else "bad"),
                *(
                    Cell(formatting.count(facts.get(f"{name}_connections")))
                    for name in ("target", "peak", "held", "failed", "lost")
                ),
                Cell(formatting.seconds(outcome.took_s), outcome.took_s),
            ]
        )
    heads = [Heading(n, "connections", is_number=True)
             for n in ("Target", "Most open", "Held", "Failed", "Lost")]  # fmt: skip
    headings = (Heading("Run"), Heading("Binding cause"), *heads, Heading("Took", is_number=True))
    return Table(f"runs-{index}", f"Runs of row {index + 1}", headings, rows) if rows else None


def _evidence(outcome: Outcome | None) -> list[dict[str, Any]]:
    if outcome is None:
        return []
    shown = []
    for finding in outcome.findings:
        if finding["severity"] == "info":
            continue
        numbers = [
            f"{e['name']} {formatting.quantity(e['value'], str(e['unit']))}"
            for e in finding["evidence"][:_SHOWN_EVIDENCE_COUNT]
        ]
        worker = finding["worker"]
        who = f"{finding['role'] or finding['side']}{f' {worker}' if worker >= 0 else ''}"
        shown.append(
            {
                "cause": finding["cause"],
                "severity": finding["severity"],
                "who": who,
                "at": formatting.moment(finding["first_s"]),
                "numbers": numbers,
                "follows_from": finding["follows_from"] or "",
            }
        )
    return shown


def _fixes(outcome: Outcome | None) -> list[Mapping[str, Any]]:
    if outcome is None:
        return []
    mine = [f for f in outcome.findings if f["cause"] == outcome.cause]
    return list(mine[0]["fix"]) if mine else []


def _effect_tables(results: Sequence[RowResult]) -> list[Table]:
    ceiling = FigureName("ceiling_count", "ceiling", "count")
    names = (ceiling, *SHOWN[:5], SHOWN[5], SHOWN[8], SHOWN[9])
    found = effects(results, [name.name for name in names])
    tables: list[Table] = []
    for option in dict.fromkeys(effect.option for effect in found):
        mine = [effect for effect in found if effect.option == option]
        rows = [
            [
                Cell(effect.value, is_code=True),
                *(
                    Cell(_range(s, name.unit) or formatting.NOT_MEASURED, s.median)
                    for name in names
                    for s in [effect.figures[name.name]]
                ),
            ]
            for effect in mine
        ]
        heads = (Heading(f"--{option}"),
                 *(Heading(name.label, is_number=True) for name in names))  # fmt: skip
        tables.append(Table(f"effect-{len(tables)}", f"--{option}", heads, rows))
    return tables


def _confusion_table(table: Confusion) -> Table:
    rows = []
    for row in table.rows:
        cells = [Cell(row.row), Cell(str(row.run_count), row.run_count)]
        for cause in table.columns:
            count = row.counts.get(cause, 0)
            is_wrong = count and cause in row.false_causes
            is_missed = cause == row.provoked and count < row.run_count
            tone = "bad" if is_wrong or is_missed else "good" if cause == row.provoked else ""
            text = cell_text(count, cause, row)
            cells.append(Cell(text, count, tone=tone))
        rows.append(cells)
    headings = (
        Heading("Row"),
        Heading("Runs", is_number=True),
        *(Heading(cause, is_number=True) for cause in table.columns),
    )
    return Table("confusion-table", "Runs that named each cause", headings, rows)


def _confusion_words(table: Confusion) -> str:
    return (
        f"{table.named_count} of {table.run_count} runs named what was provoked; "
        f"{table.false_count} causes were named without reason."
    )


def _host_facts(facts: MatrixFacts) -> list[tuple[str, str]]:
    host = facts.host
    return [
        ("Host", f"Linux {host.get('kernel')}, {host.get('cpu_count')} cores, "
                 f"{formatting.size(host.get('memory_total_bytes'))}"),
        ("Started", facts.started.replace("T", " ").replace("+00:00", " UTC")),
        ("Runs of each row", str(facts.repeats)),
        ("Order", f"shuffled with seed {facts.seed}"),
    ]  # fmt: skip
