"""Draws the plot of the documents: a row for each workload, a mark for each candidate, the ratio to one of them as a
logarithmic scale. Plain SVG, readable on a light and on a dark page."""

import math
from html import escape

ROW, HEAD, LEFT, RIGHT, SCALE = 18, 90, 190, 30, 600
# What lies further out is drawn at the edge; the tables have the figure.
LOWEST, HIGHEST = 0.02, 50.0
# Of one lightness, so that they can be told apart on both grounds; the shape tells them apart without colour.
MARKS = {
    "plain": ("#8a8a8a", "diamond"),
    "fuse-overlayfs": ("#d9822b", "square"),
    "fuse-overlayfs-2": ("#b8a000", "square"),
    "mergerfs": ("#a06cd5", "triangle"),
    "dev": ("#2f8fd8", "circle"),
    "ring": ("#e0457b", "circle"),
    "dev-passthrough": ("#1f9e89", "ring"),
    "ring-passthrough": ("#e0457b", "ring"),
}
STYLE = """
text { font: 12px sans-serif; fill: #24292f }
.kind { font-weight: bold }
.tick, .note { fill: #57606a }
.ground { fill: #ffffff }
.grid { stroke: #d0d7de; stroke-width: 1 }
.one { stroke: #57606a; stroke-width: 1.5 }
.span { stroke: #d0d7de; stroke-width: 1 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .tick, .note { fill: #9198a1 }
  .ground { fill: #0d1117 }
  .grid, .span { stroke: #30363d }
  .one { stroke: #9198a1 }
}
"""


def mark(candidate: str, x: float, y: float, title: str) -> str:
    colour, shape = MARKS.get(candidate, ("#57606a", "circle"))
    hint = f"<title>{escape(title)}</title>"
    if shape == "square":
        return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{colour}">{hint}</rect>'
    if shape in ("triangle", "diamond"):
        points = [(0, -5), (5, 4), (-5, 4)] if shape == "triangle" else [(0, -5), (5, 0), (0, 5), (-5, 0)]
        at = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in points)
        return f'<polygon points="{at}" fill="{colour}">{hint}</polygon>'
    paint = f'fill="none" stroke="{colour}" stroke-width="2"' if shape == "ring" else f'fill="{colour}"'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" {paint}>{hint}</circle>'


def ticks(low: float, high: float) -> list[float]:
    steps = [m * 10.0**e for e in range(-4, 5) for m in (1, 2, 5)]
    return [step for step in steps if low <= step <= high]


def draw(party, base: str) -> str:
    """`party` is report.Party; workloads without a time of `base` have no row."""
    others = [candidate for candidate in party.candidates if candidate["name"] != base]
    rows: list[tuple[str | None, str, list[tuple[dict, float]]]] = []
    for kind in party.kinds():
        timed = [w["name"] for w in party.workloads if w["kind"] == kind and w["unit"] == "s"]
        found = [(name, [(c, r) for c in others if (r := party.ratio(name, c["name"], base))]) for name in timed]
        found = [(name, ratios) for name, ratios in found if ratios]
        rows += [(kind, "", [])] if found else []
        rows += [(None, name, ratios) for name, ratios in found]
    every = [ratio for _, _, ratios in rows for _, ratio in ratios] + [1.0]
    low, high = max(min(every), LOWEST) / 1.2, min(max(every), HIGHEST) * 1.2

    def x(ratio: float) -> float:
        return LEFT + SCALE * math.log(min(max(ratio, low), high) / low) / math.log(high / low)

    width, height = LEFT + SCALE + RIGHT, HEAD + ROW * len(rows) + 30
    bottom = HEAD + ROW * len(rows)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">',
        "<title>Time of each workload as a multiple of the time on the kernel's overlayfs</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="ground" width="{width}" height="{height}"/>',
    ]
    at, line = 10.0, 16
    for candidate in others:
        needed = 32 + 6.3 * len(candidate["label"])
        if at + needed > width:
            at, line = 10.0, line + 20
        out.append(mark(candidate["name"], at + 5, line, candidate["label"]))
        out.append(f'<text x="{at + 14:.0f}" y="{line + 4}">{escape(candidate["label"])}</text>')
        at += needed
    note = "time as a multiple of the kernel's overlayfs; further left is faster"
    out.append(f'<text class="note" x="10" y="{HEAD - 30}">{note}</text>')
    for step in ticks(low, high):
        name = "one" if step == 1 else "grid"
        out.append(f'<line class="{name}" x1="{x(step):.1f}" x2="{x(step):.1f}" y1="{HEAD - 6}" y2="{bottom}"/>')
        for y in (HEAD - 10, bottom + 16):
            out.append(f'<text class="tick" x="{x(step):.1f}" y="{y}" text-anchor="middle">{step:g}×</text>')
    for index, (kind, name, ratios) in enumerate(rows):
        y = HEAD + ROW * index + ROW / 2
        if kind:
            out.append(f'<text class="kind" x="10" y="{y + 4:.1f}">{escape(kind)}</text>')
            continue
        out.append(f'<text x="{LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        ends = [x(ratio) for _, ratio in ratios]
        out.append(f'<line class="span" x1="{min(ends):.1f}" x2="{max(ends):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        # Ours last, on top.
        for candidate, ratio in sorted(ratios, key=lambda pair: pair[0]["ours"]):
            out.append(mark(candidate["name"], x(ratio), y, f"{name}, {candidate['label']}: {ratio:.2f}×"))
    return "\n".join(out + ["</svg>"]) + "\n"
