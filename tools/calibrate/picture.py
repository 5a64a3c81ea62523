"""The picture: two panels that a person understands at a glance, as SVG that follows the reader's
light or dark background.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from math import isfinite, log10

RULES = {"ours": "this operator", "argo": "Argo-like threshold", "flagger": "Flagger-like threshold"}
REGRESSIONS = {
    "errors_1_to_2": "errors 1 % → 2 %",
    "tail_20_percent": "latency +20 %",
    "accuracy_2_points": "accuracy −2 points",
    "errors_x10": "errors × 10",
    "accuracy_half": "half of the answers wrong",
}
HEALTHY = {"no_difference": "bad share at the threshold", "stable_half_of_threshold": "bad share half of it"}
_STYLE = """
text{font:13px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#1f2328}.head{font-size:16px;font-weight:600}.dim{fill:#59636e;font-size:12px}
.value{font-size:12px;font-weight:600}.grid{stroke:#d1d9e0;stroke-width:1}
.ours{fill:#1a7f37}.argo{fill:#bc4c00}.flagger{fill:#8250df}
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.dim{fill:#9198a1}.grid{stroke:#3d444d}
.ours{fill:#3fb950}.argo{fill:#f0883e}.flagger{fill:#b083f0}}
"""  # noqa: E501
_WIDTH, _LEFT, _RIGHT = 900, 250, 790
_ROW, _BAR = 21, 14


def draw(values: Mapping[str, float], rollouts: int) -> str:
    """From the figures by name. Raises KeyError where one is missing: a picture of a part would
    mislead.
    """
    parts: list[str] = []
    y = _legend(parts, 26)
    y = _false_alarms(parts, values, rollouts, y + 24)
    y = _harm(parts, values, y + 34)
    body = "\n".join(parts)
    title = (
        "False rollbacks and bad requests until rollback, of the operator's judgement and two fixed-threshold"
        " rules"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" role="img"'
        f' aria-label="{title}">\n<title>{title}</title>\n<style>{_STYLE}</style>\n{body}\n</svg>\n'
    )


def _legend(parts: list[str], y: int) -> int:
    x = _LEFT
    for rule, label in RULES.items():
        parts.append(f'<rect class="{rule}" x="{x}" y="{y - 11}" width="{_BAR}" height="{_BAR}" rx="3"/>')
        parts.append(_text(x + 20, y, label))
        x += 46 + 7 * len(label)
    return y


def _false_alarms(parts: list[str], values: Mapping[str, float], rollouts: int, y: int) -> int:
    parts.append(_text(20, y + 6, "A healthy canary, watched for an hour: taken back by mistake", "head"))
    parts.append(
        _text(
            20,
            y + 26,
            f"share of {rollouts:,} simulated rollouts; the thresholds ask for a success of at least 99 %",
            "dim",
        )
    )
    y += 40
    top, width = y, _RIGHT - _LEFT
    rows: list[str] = []
    for scenario, label in HEALTHY.items():
        for rate in (1, 10, 100):
            group = y
            for rule in RULES:
                y += _ROW - 3
                share = values[f"{rule}.{scenario}.{rate}.false_rollback_rate"]
                rows += _bar(rule, y, width * share, _percent(share))
            rows.append(
                _text(_LEFT - 12, group + 46, f"{rate} request{'s' if rate > 1 else ''}/s", "dim", "end")
            )
            y += 10
        rows.append(_text(20, y - 3 * (3 * (_ROW - 3) + 10) + 14, label))
        y += 16
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_rule(_LEFT + width * share, top, y - 16))
        rows.append(_text(_LEFT + width * share, y, f"{100 * share:.0f} %", "dim", "middle"))
    parts += rows
    return y


def _harm(parts: list[str], values: Mapping[str, float], y: int) -> int:
    parts.append(
        _text(
            20,
            y + 6,
            "A bad canary: bad requests that it serves, and seconds, until it is taken back",
            "head",
        )
    )
    parts.append(
        _text(
            20,
            y + 26,
            "medians at 100 requests/s, weight 20 %; logarithmic. The thresholds catch these, and take the"
            " healthy ones back as well.",
            "dim",
        )
    )
    y += 40
    top, rows = y, list[str]()

    def place(count: float) -> float:
        return (_RIGHT - _LEFT) * log10(count / 10) / log10(500)

    for scenario, label in REGRESSIONS.items():
        group = y
        for rule in RULES:
            y += _ROW - 3
            bad, seconds = (
                values[f"{rule}.{scenario}.100.bad_requests"],
                values[f"{rule}.{scenario}.100.seconds_to_rollback"],
            )
            if isfinite(seconds):
                rows += _bar(rule, y, place(max(bad, 10.5)), f"{bad:.0f} in {seconds:.0f} s")
            else:
                rows.append(_text(_LEFT + 6, y + 11, "not within 15 minutes", "value"))
        rows.append(_text(_LEFT - 12, group + 46, label, "", "end"))
        y += 12
    y += 16
    for count in (10, 100, 1000):
        parts.append(_rule(_LEFT + place(count), top + 8, y - 16))
        rows.append(_text(_LEFT + place(count), y, f"{count:,}", "dim", "middle"))
    parts += rows
    return y + 14


def _bar(rule: str, y: float, width: float, label: str) -> list[str]:
    end = _LEFT + max(width, 2)
    return [
        f'<rect class="{rule}" x="{_LEFT}" y="{y}" width="{max(width, 2):.1f}" height="{_BAR}" rx="2"/>',
        _text(end + 6, y + 11, label, "value"),
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2f} %"


def _rule(x: float, top: float, bottom: float) -> str:
    return f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{escape(text)}</text>'
