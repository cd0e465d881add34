"""A bar chart of ratios as SVG, without any library: one row a figure, in groups."""
import dataclasses
from xml.sax.saxutils import escape

LEFT, WIDTH, RIGHT = 250, 520, 70   # labels, bars, figures: pixels
ROW, HEAD, TOP = 20, 34, 64


@dataclasses.dataclass
class Bar:
    group: str
    label: str
    value: float
    reach: float | None = None   # a line
    aim: float | None = None     # a broken line
    last: float | None = None    # a ring: as recorded last


def text(x, y, words, more=""):
    return f'<text x="{x}" y="{y}" {more}>{escape(words)}</text>'


def line(x, y1, y2, more):
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y1}" y2="{y2}" {more}/>'


def row(bar, y, scale):
    """One bar with its marks; those beyond the scale stand at its end."""
    def at(value):
        return LEFT + min(value / scale, 1) * WIDTH
    colour = "#3b7dbb" if bar.reach is None or bar.value >= bar.reach else "#c2593f"
    width = at(bar.value) - LEFT
    out = [text(LEFT - 8, y + 14, bar.label, 'text-anchor="end"'),
           f'<rect x="{LEFT}" y="{y + 3}" width="{width:.1f}" height="{ROW - 6}" fill="{colour}"/>',
           text(LEFT + WIDTH + 8, y + 14, f"{bar.value:.2f}")]
    if bar.reach is not None:
        out.append(line(at(bar.reach), y + 1, y + ROW - 1, 'stroke="black" stroke-width="2"'))
    if bar.aim is not None:
        out.append(line(at(bar.aim), y + 1, y + ROW - 1, 'stroke="black" stroke-dasharray="3 2"'))
    if bar.last is not None:
        ring = 'r="4" fill="none" stroke="#e0a000" stroke-width="2"'
        out.append(f'<circle cx="{at(bar.last):.1f}" cy="{y + ROW / 2}" {ring}/>')
    return out


def grid(scale, bottom):
    out = []
    for tenth in range(0, round(scale * 10) + 1, 2):
        x = LEFT + tenth / 10 / scale * WIDTH
        out.append(line(x, TOP - 6, bottom, 'stroke="#ddd"'))
        out.append(text(f"{x:.1f}", TOP - 10, f"{tenth / 10:.1f}", 'text-anchor="middle" fill="#666"'))
    return out


def svg(bars):
    marks = [v for b in bars for v in (b.value, b.reach or 0, b.aim or 0)]
    scale = max(1.2, min(2.0, -(-max(marks, default=1) // 0.2) * 0.2))
    body, y, group = [], TOP, None
    for bar in bars:
        if bar.group != group:
            group = bar.group
            body.append(text(LEFT, y + 24, group, 'font-weight="bold"'))
            y += HEAD
        body += row(bar, y, scale)
        y += ROW
    legend = text(20, 20, "line: to reach; broken line: aim; ring: recorded last; red: below what is to be reached")
    size = f'width="{LEFT + WIDTH + RIGHT}" height="{y + 16}"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
                      f'<rect {size} fill="white"/>', legend, *grid(scale, y), *body, "</svg>", ""])
