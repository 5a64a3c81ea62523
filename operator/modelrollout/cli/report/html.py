"""PURE: a report as one HTML file: no scripts, nothing loaded from elsewhere, pictures as inline
SVG, light and dark by the reader's setting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from modelrollout.cli.report.model import (
    NOT_JUDGED,
    Judged,
    Report,
    SearchPoint,
    SearchReport,
    StepReport,
    size,
)
from modelrollout.cli.report.text import scale_of, search_headers, search_row
from modelrollout.cli.view import duration
from modelrollout.statistics.frontier import OBJECTIVES, Objective, Point, cost_of, frontier

_VERDICT = {
    "Successful": "good",
    "Failed": "bad",
    "Rejected": "bad",
    "RolledBack": "bad",
    "Stable": "good",
    "Promoted": "good",
    "Error": "odd",
}
_STAGES = 6  # colours

# The colours are of a palette that stays apart under the common kinds of colour blindness; verdicts
# also show in words and shapes.
_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5c6670;--line:#d5dbe1;--page:#fff;--panel:#f6f8fa;--good:#0b7a5c;--bad:#c2381b;--wait:#8a6100;
--odd:#7a3fa0;--s0:#4477aa;--s1:#66ccee;--s2:#228833;--s3:#ccbb44;--s4:#ee6677;--s5:#aa3377}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaee;--soft:#9aa5b1;--line:#39424c;--page:#14181d;--panel:#1d232a;--good:#3fc79a;--bad:#ff7a5c;--wait:#e0b040;
--odd:#c58be8}}
body{margin:0 auto;padding:2rem 1.25rem;max-width:60rem;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2rem 0 .25rem}h3{font-size:1rem;margin:1.25rem 0 .25rem}
p{margin:.25rem 0 .75rem}.soft{color:var(--soft)}code,.mono{font-family:ui-monospace,monospace;font-size:.9em;overflow-wrap:anywhere}
.tag{display:inline-block;border:1px solid currentColor;border-radius:1em;padding:0 .6em;font-size:.85rem;font-weight:600}
.good{color:var(--good)}.bad{color:var(--bad)}.wait{color:var(--wait)}.odd{color:var(--odd)}
table{border-collapse:collapse;width:100%;font-size:.92rem}
td,th{text-align:left;vertical-align:top;padding:.3rem .75rem .3rem 0;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--soft)}.facts td:first-child{white-space:nowrap;color:var(--soft);width:1%}
.wide{overflow-x:auto}figure{margin:.5rem 0 1rem;padding:.75rem;background:var(--panel);border-radius:8px;overflow-x:auto}
figcaption{color:var(--soft);font-size:.85rem;margin-top:.4rem}svg{display:block;width:100%;min-width:34rem;height:auto}
svg text{fill:var(--ink);font:12px system-ui,sans-serif}svg .soft{fill:var(--soft)}.axis{stroke:var(--soft);stroke-width:1}
.limit{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:4 3}
.span.good,.dot.good,.end.good{stroke:var(--good);fill:var(--good)}.span.bad,.dot.bad,.end.bad{stroke:var(--bad);fill:var(--bad)}
.span.wait,.dot.wait,.end.wait{stroke:var(--wait);fill:var(--wait)}.span.odd,.dot.odd,.end.odd{stroke:var(--odd);fill:var(--odd)}.span{stroke-width:3}
.whisker{stroke:var(--soft);stroke-width:1.5}.name{paint-order:stroke;stroke:var(--panel);stroke-width:4px}.ring{fill:none;stroke:var(--ink);stroke-width:2}.cross{fill:none;stroke:var(--bad);stroke-width:2.5}
.front{fill:none;stroke:var(--soft);stroke-width:1.5}.grid{stroke:var(--line);stroke-width:1}
.taken td{font-weight:600}.found td+td{white-space:nowrap}
.gap{stroke:var(--panel);stroke-width:1}
"""


def html(report: Report) -> str:
    """The file's text."""
    title = escape(f"{report.revision} (#{report.number})")
    facts = "".join(f"<tr><td>{escape(k)}</td><td class=mono>{escape(v)}</td></tr>" for k, v in report.facts)
    body = [
        f"<h1>{title}</h1>",
        f"<p class=soft>revision of {escape(report.deployment)}, namespace {escape(report.namespace)}</p>",
        (
            f"<p>{_tag(report.outcome)}"
            f" {escape(': '.join(w for w in (report.reason, report.message) if w and w != '-'))}</p>"
        ),
        f"<h2>Version</h2><table class=facts>{facts}</table>",
    ]
    if report.search:
        body += [f"<h2>Search</h2><p class=soft>{escape(report.search.remark)}</p>", *_search(report.search)]
    if report.gate:
        about = "The optimized model against the original one, on the same held-out samples."
        body += [f"<h2>Gate</h2><p class=soft>{about}</p>", *_metrics(report.gate)]
    if report.golden:
        body += [
            "<h2>Golden data</h2><p class=soft>Through the served model, paired with stable.</p>",
            *_metrics([report.golden]),
        ]
    if report.steps:
        body += ["<h2>Canary</h2>", _steps(report.steps)]
    for step in report.steps:
        head = f"<h3>Step {step.number}: {step.weight} % of the requests</h3>"
        body += [head, f"<p>{_tag(step.verdict)} {escape(step.reason)}</p>", *_metrics(step.metrics)]
    if report.stages:
        body += ["<h2>Time by stage</h2>", _timeline(report.stages)]
    body += [f"<p class=soft>{escape(note)}</p>" for note in report.notes]
    meta = (
        "<meta charset=utf-8><meta name=viewport"
        f' content="width=device-width,initial-scale=1"><title>{title}</title><style>{_STYLE}</style>'
    )
    return (
        "<!doctype html>\n<html"
        f" lang=en><head>{meta}</head><body>{''.join(part + chr(10) for part in body)}</body></html>\n"
    )


def _class(verdict: str) -> str:
    return _VERDICT.get(verdict, "wait")


def _tag(verdict: str) -> str:
    if verdict == NOT_JUDGED:
        return verdict
    return f"<span class='tag {_class(verdict)}'>{escape(verdict)}</span>"


def _metrics(rows: Sequence[Judged]) -> list[str]:
    if not rows:
        return []
    drawn = [row for row in rows if row.interval is not None]
    heads = "".join(
        f"<th>{h}</th>"
        for h in ("metric", "candidate", "reference", "samples", "harm (95 %)", "verdict", "reason")
    )
    cells = []
    for r in rows:
        why = f"{r.reason}: {r.message}" if r.message else r.reason
        plain = [escape(value) for value in (r.name, r.candidate, r.reference, r.samples or "-")]
        cells.append("".join(f"<td>{cell}</td>" for cell in (*plain, _harm(r), _tag(r.verdict), escape(why))))
    table = (
        f"<div class=wide><table><tr>{heads}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table></div>"
    )
    return [*([_intervals(drawn)] if drawn else []), table]


def _harm(row: Judged) -> str:
    if row.interval is None:
        return "-"
    allowed = f"; allowed {row.margin:.4g}" if row.margin is not None else ""
    return escape(f"{row.interval[0]:+.4f} to {row.interval[1]:+.4f}{allowed}")


# --- pictures

_WIDTH, _ROW, _LEFT, _RIGHT = 720, 34, 170, 20


def _el(name: str, content: str = "", **attributes: str | float) -> str:
    """An element; ``class_`` is class, other underscores are hyphens. ``content`` is markup."""
    rendered = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value if isinstance(value, str) else f"{value:.4g}")}"'
        for key, value in attributes.items()
    )
    return f"<{name}{rendered}>{content}</{name}>" if content else f"<{name}{rendered}/>"


def _text(x: float, y: float, words: str, class_: str = "", anchor: str = "start") -> str:
    return _el("text", escape(words), x=x, y=y, class_=class_, text_anchor=anchor)


def _group(title: str, *parts: str) -> str:
    """Elements with the tooltip ``title``."""
    return _el("g", _el("title", escape(title)) + "".join(parts))


def _intervals(rows: Sequence[Judged]) -> str:
    """Each row on a scale of its own, so that what is allowed stands at the same place in all of
    them.
    """
    half = (_WIDTH - _LEFT - _RIGHT) / 2
    zero, height = _LEFT + half, _ROW * len(rows) + 26
    parts = [
        _el("line", class_="axis", x1=zero, x2=zero, y1=4, y2=height - 22),
        _text(zero, height - 6, "no difference", "soft", "middle"),
        _text(_LEFT, height - 6, "better", "soft"),
        _text(_WIDTH - _RIGHT, height - 6, "worse", "soft", "end"),
    ]
    if any(row.margin for row in rows):
        parts.append(_text(zero + half / 2, height - 6, "allowed", "soft", "middle"))
    for i, row in enumerate(rows):
        assert row.interval is not None
        scale, y, kind = scale_of(row), _ROW * i + 20, _class(row.verdict)

        def x(value: float, scale: float = scale) -> float:
            return zero + half * max(-1.0, min(1.0, value / scale))

        low, high = row.interval
        drawn = [_text(0, y + 4, _short(row.name, 26))]
        if row.margin:
            drawn.append(
                _el("line", class_="limit", x1=x(row.margin), x2=x(row.margin), y1=y - 12, y2=y + 12)
            )
        drawn.append(_el("line", class_=f"span {kind}", x1=x(low), x2=x(high), y1=y, y2=y))
        drawn += [_end(x(at), y, kind, beyond=abs(at) > scale, right=at > 0) for at in (low, high)]
        if row.harm is not None and abs(row.harm) <= scale:
            drawn.append(_el("circle", class_=f"dot {kind}", cx=x(row.harm), cy=y, r=5))
        parts.append(_group(f"{row.name}: {low:+.4f} to {high:+.4f}, {row.verdict}", *drawn))
    about = "Intervals: " + ", ".join(f"{r.name} {r.verdict}" for r in rows)
    caption = (
        "95 % interval of the harm, the dot is the best guess; dashed: what is allowed. An arrow: it goes on"
        " beyond the picture."
    )
    return _figure(height, about, parts, caption)


def _search(search: SearchReport) -> list[str]:
    heads = "".join(f"<th>{escape(h)}</th>" for h in search_headers(search))
    rows = "".join(
        f"<tr{' class=taken' if p.chosen else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in search_row(p))}</tr>"
        for p in search.points
    )
    table = f"<div class=wide><table class=found><tr>{heads}</tr>{rows}</table></div>"
    if len(search.points) < 2:
        return [table]
    return [*(_scatter(search, objective) for objective in OBJECTIVES), table]


def _cost_text(cost: float, objective: Objective) -> str:
    return size(round(cost)).split(" (")[0] if objective == "Size" else f"{cost:.3g} ms"


_PLOT = (64, _WIDTH - 24, 18, 250)  # left, right, top, bottom of the area where points lie


def _scatter(search: SearchReport, objective: Objective) -> str:
    """The metric, better upwards, over a cost on a logarithmic scale; the line joins what no other
    beats, the ring is what was taken.
    """
    left, right, top, bottom = _PLOT
    models = [Point(p.name, p.size, p.milliseconds, p.loss, p.within) for p in search.points]
    cost_by_name = {m.name: max(cost_of(objective)(m), 1e-9) for m in models}
    what = objective.lower()

    def cost(p: SearchPoint) -> float:
        return cost_by_name[p.name]

    def cost_text(value: float) -> str:
        return _cost_text(value, objective)

    sign = -1.0 if search.smaller_is_better else 1.0
    limit = None if search.allowed is None else search.before - sign * search.allowed
    # What lies far below what is allowed would press all else together: it is drawn at the lower
    # edge, as an arrow.
    depth = 2.5 * search.allowed if search.allowed else max(abs(p.loss) for p in search.points) or 0.01
    lowest, highest = (
        search.before - sign * depth,
        max((p.value for p in search.points), key=lambda v: sign * v),
    )
    room = abs(highest - lowest) * 0.12
    highest, lowest = highest + sign * room, lowest - sign * room
    costs = [math.log(cost(p)) for p in search.points]
    margin = 0.08 * (max(costs) - min(costs)) or 0.1
    first, last = min(costs) - margin, max(costs) + margin

    def x(p: SearchPoint) -> float:
        return left + (right - left) * (math.log(cost(p)) - first) / (last - first)

    def y(value: float) -> float:
        return top + (bottom - top) * min(1.0, max(0.0, (highest - value) / (highest - lowest)))

    parts = [
        _el("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom),
        _el("line", class_="axis", x1=left, x2=left, y1=top - 8, y2=bottom),
        _text(left - 6, y(search.before) + 4, f"{search.before:.4g}", "soft", "end"),
        _el("line", class_="grid", x1=left, x2=right, y1=y(search.before), y2=y(search.before)),
        _text(4, 12, search.metric, "soft"),
        _text(right, bottom + 34, f"{what}, logarithmic: better to the left", "soft", "end"),
    ]
    if limit is not None:
        parts.append(_el("line", class_="limit", x1=left, x2=right, y1=y(limit), y2=y(limit)))
        parts += [
            _text(left - 6, y(limit) + 4, f"{limit:.4g}", "soft", "end"),
            _text(right, y(limit) + 15, "allowed", "soft", "end"),
        ]
    for edge, anchor in ((min(search.points, key=cost), "middle"), (max(search.points, key=cost), "middle")):
        parts.append(_text(x(edge), bottom + 18, cost_text(cost(edge)), "soft", anchor))
    by_name = {p.name: p for p in search.points}
    line = [by_name[m.name] for m in frontier(models, objective)]
    parts.append(_el("path", class_="front", d="M" + " L".join(f"{x(p):.1f},{y(p.value):.1f}" for p in line)))
    labels = _Labels()
    for p in sorted(search.points, key=lambda p: (not p.chosen, cost(p))):
        at, high, kind = x(p), y(p.value), "good" if p.within else "bad"
        below = (lowest - p.value) * sign > 0
        drawn = [
            (
                _el("path", class_=f"dot {kind}", d=f"M{at:.1f},{high:.1f} l-5,-9 l10,0 Z")
                if below
                else _mark(at, high, p.within)
            )
        ]
        drawn.insert(
            0,
            _el("line", class_="whisker", x1=at, x2=at, y1=high, y2=y(search.before - sign * p.highest_loss)),
        )
        if p.chosen:
            drawn.append(_el("circle", class_="ring", cx=at, cy=high, r=10))
        drawn.append(labels.place(at, high, p.name, left, right, top, bottom))
        parts.append(
            _group(
                f"{p.name}: {cost_text(cost(p))}, {search.metric} {p.value:.4f}, budget"
                f" {'kept' if p.within else 'not kept'}",
                *drawn,
            )
        )
    about = f"{search.metric} against {what}: " + ", ".join(
        f"{p.name} {p.value:.4f} at {cost_text(cost(p))}" for p in line
    )
    caption = (
        f"{search.metric} against {what}. Dots keep the budget, crosses do not (arrows: far below); the"
        " whisker reaches to what the 95 % interval does not rule out; the line joins what no other beats,"
        " the ring is the one that was taken."
    )
    return _figure(bottom + 42, about, parts, caption)


def _mark(x: float, y: float, within: bool) -> str:
    if within:
        return _el("circle", class_="dot good", cx=x, cy=y, r=5)
    return _el("path", class_="cross", d=f"M{x - 4:.1f},{y - 4:.1f} l8,8 m0,-8 l-8,8")


class _Labels:
    """Names beside points, none over another: above, below, or left out where there is no room (the
    tooltip has the name).
    """

    def __init__(self) -> None:
        self._taken: list[tuple[float, float, float, float]] = []

    def place(
        self, x: float, y: float, name: str, left: float, right: float, top: float, bottom: float
    ) -> str:
        """The text, or nothing."""
        words = _short(name, 30)
        wide = 6.3 * len(words)
        start = min(max(x - wide / 2, left + 3), right - wide)
        for base in (y - 13, y + 23, y - 27, y + 37, y - 41, y + 51):
            box = (start, base - 11, start + wide, base + 3)
            free = not any(
                box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in self._taken
            )
            if free and box[1] > top - 16 and box[3] < bottom:
                self._taken.append(box)
                return _text(start, base, words, "name")
        return ""


def _end(x: float, y: float, kind: str, *, beyond: bool, right: bool) -> str:
    if not beyond:
        return _el("line", class_=f"span {kind}", x1=x, x2=x, y1=y - 5, y2=y + 5)
    back = x - 9 if right else x + 9
    return _el("path", class_=f"end {kind}", d=f"M{x:.1f},{y} L{back:.1f},{y - 6} L{back:.1f},{y + 6} Z")


def _steps(steps: Sequence[StepReport]) -> str:
    """Weight over the steps: as wide as they lasted, as high as their share."""
    total = sum(step.seconds or 0 for step in steps) or 1.0
    room, left, ground = _WIDTH - _LEFT - _RIGHT, float(_LEFT), 116
    widths = [max(36.0, room * (step.seconds or 0) / total) for step in steps]
    parts = [
        _text(0, 24, "share of the requests", "soft"),
        _el("line", class_="axis", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=ground, y2=ground),
    ]
    for step, wide in zip(steps, widths, strict=True):
        width, tall = wide * room / sum(widths), max(2.0, 90 * step.weight / 100)
        took = duration(step.seconds) if step.seconds is not None else "now"
        block = _el(
            "rect",
            class_=f"dot {_class(step.verdict)}",
            fill_opacity=0.35,
            x=left + 1,
            y=ground - tall,
            width=max(1.0, width - 2),
            height=tall,
        )
        share = _text(left + width / 2, ground - tall - 5, f"{step.weight} %", anchor="middle")
        time = _text(left + width / 2, ground + 17, took, "soft", "middle")
        parts.append(
            _group(
                f"step {step.number}: {step.weight} %, {took}, {step.verdict} ({step.reason})",
                block,
                share,
                time,
            )
        )
        left += width
    about = "Canary steps: " + ", ".join(f"{s.weight} % {s.verdict}" for s in steps)
    return _figure(ground + 24, about, parts, "Widths are times (short steps are drawn wider).")


def _timeline(stages: Sequence[tuple[str, float]]) -> str:
    total = sum(seconds for _, seconds in stages) or 1.0
    parts, left = [], 0.0
    for i, (stage, seconds) in enumerate(stages):
        width, fill = _WIDTH * seconds / total, f"var(--s{i % _STAGES})"
        block = _el("rect", class_="gap", fill=fill, x=left, y=4, width=max(1.0, width), height=30, rx=2)
        parts.append(_group(f"{stage}: {duration(seconds)}, {seconds / total:.0%}", block))
        left += width
        x, y = 240 * (i % 3), 58 + 22 * (i // 3)
        parts += [
            _el("rect", fill=fill, x=x, y=y - 10, width=11, height=11, rx=2),
            _text(x + 18, y, f"{stage} {duration(seconds)}"),
        ]
    return _figure(
        68 + 22 * ((len(stages) + 2) // 3 - 1), "Time by stage", parts, f"{duration(total)} in all."
    )


def _figure(height: float, about: str, parts: Sequence[str], caption: str) -> str:
    svg = _el("svg", "".join(parts), viewBox=f"0 0 {_WIDTH} {height:g}", role="img", aria_label=about)
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
