"""Small charts as inline SVG: no scripts, colours from the page's style sheet, every text escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 320, 170
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 24
MAX_POINTS = 300


def line_chart(title: str, points: Sequence[tuple[float, float]], x_name: str = "step") -> str:
    """A figure with one line through (x, y), x ascending; long series are thinned to averages of equal runs.

    Raises ValueError for fewer than two points.
    """
    if len(points) < 2:
        raise ValueError(f"{title}: a line needs two points, not {len(points)}")
    shown = thin(points, MAX_POINTS)
    xs, ys = [x for x, _ in shown], [y for _, y in shown]
    ticks = nice_ticks(min(ys), max(ys))
    low, high = ticks[0], ticks[-1]
    left, right = xs[0], xs[-1] if xs[-1] > xs[0] else xs[0] + 1

    def place(x: float, y: float) -> str:
        return f"{LEFT + (x - left) / (right - left) * _inner_width():.1f},{_height_of(y, low, high):.1f}"

    path = " ".join(place(x, y) for x, y in shown)
    body = [_grid(ticks, low, high), f'<polyline class="line" points="{path}"/>']
    if len(shown) <= 40:
        body += [_dot(place(x, y)) for x, y in shown]
    body.append(_text(LEFT, HEIGHT - 6, number(xs[0]), "start"))
    body.append(_text(LEFT + _inner_width() / 2, HEIGHT - 6, x_name, "middle"))
    body.append(_text(WIDTH - RIGHT, HEIGHT - 6, number(xs[-1]), "end"))
    return _figure(title, f"{title}: from {number(ys[0])} to {number(ys[-1])}", body)


def bar_chart(title: str, values: Sequence[float], x_name: str) -> str:
    """A figure with one bar for each value (numbered from 0), from 0 up; negative values hang down."""
    if not values:
        raise ValueError(f"{title}: no values")
    ticks = nice_ticks(min(0.0, *values), max(0.0, *values))
    low, high = ticks[0], ticks[-1]
    slot, zero = _inner_width() / len(values), _height_of(0.0, low, high)
    body = [_grid(ticks, low, high)]
    for index, value in enumerate(values):
        x, y = LEFT + slot * index, _height_of(value, low, high)
        body.append(
            f'<rect class="bar" x="{x + slot * 0.15:.1f}" y="{min(y, zero):.1f}" '
            f'width="{slot * 0.7:.1f}" height="{abs(zero - y):.1f}"/>'
        )
        body.append(_text(x + slot / 2, max(TOP + 8, min(y, zero) - 3), number(value), "middle", "value"))
        label = f"{x_name} {index}" if index == 0 else str(index)
        body.append(_text(x + slot / 2, HEIGHT - 6, label, "middle"))
    return _figure(title, f"{title}: {', '.join(number(v) for v in values)}", body)


def interval_bar(value: float, low: float, high: float) -> str:
    """A thin 0..1 scale with the interval and the value on it; empty where they do not lie in 0..1."""
    if not 0 <= low <= value <= high <= 1:
        return ""
    return (
        '<svg class="interval" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="scale" x="0" y="3" width="100" height="2"/>'
        f'<rect class="span" x="{low * 100:.2f}" y="1" width="{max(0.5, (high - low) * 100):.2f}" height="6"/>'
        f'<rect class="mark" x="{min(98.5, value * 100):.2f}" y="0" width="1.5" height="8"/></svg>'
    )


def interval_chart(title: str, rows: Sequence[tuple[str, float, float, float]]) -> str:
    """A figure with one row for each (name, value, low, high): a point and the line of its interval, on one scale.

    Raises ValueError for no rows.
    """
    if not rows:
        raise ValueError(f"{title}: no rows")
    numbers = [x for _, *three in rows for x in three]
    ticks = nice_ticks(min(numbers), max(numbers))
    row, left = 22, 84
    height = TOP + row * len(rows) + BOTTOM

    def across(x: float) -> float:
        return left + (x - ticks[0]) / (ticks[-1] - ticks[0]) * (WIDTH - left - RIGHT)

    body = []
    for tick in ticks:
        x = across(tick)
        body.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        body.append(_text(x, height - 8, number(tick), "middle"))
    for place, (name, value, low, high) in enumerate(rows):
        y = TOP + row * (place + 0.5)
        body.append(_text(left - 6, y + 3, name[:16], "end", "value"))
        body.append(f'<line class="line" x1="{across(low):.1f}" x2="{across(high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(_dot(f"{across(value):.1f},{y:.1f}", 3))
    told = ", ".join(f"{name} {number(value)} ({number(low)} to {number(high)})" for name, value, low, high in rows)
    return _figure(title, f"{title}: {told}", body, height)


def path_chart(title: str, points: Sequence[tuple[str, float, float]], x_name: str, y_name: str) -> str:
    """A figure with named points (name, x, y) in their order, joined by a line. Raises ValueError for no points."""
    if not points:
        raise ValueError(f"{title}: no points")
    x_ticks = nice_ticks(min(x for _, x, _ in points), max(x for _, x, _ in points))
    ticks = nice_ticks(min(y for _, _, y in points), max(y for _, _, y in points))
    low, high = ticks[0], ticks[-1]

    def place(x: float, y: float) -> str:
        across = LEFT + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * _inner_width()
        return f"{across:.1f},{_height_of(y, low, high):.1f}"

    line = " ".join(place(x, y) for _, x, y in points)
    body = [_grid(ticks, low, high), f'<polyline class="line" points="{line}"/>']
    for name, x, y in points:
        across, down = place(x, y).split(",")
        body.append(_dot(place(x, y), 3))
        end = float(across) > WIDTH / 2
        body.append(_text(float(across) + (-6 if end else 6), float(down) - 4, name[:16], "end" if end else "start"))
    for tick, anchor in ((x_ticks[0], "start"), (x_ticks[-1], "end")):
        body.append(_text(LEFT if anchor == "start" else WIDTH - RIGHT, HEIGHT - 6, number(tick), anchor))
    body.append(_text(LEFT + _inner_width() / 2, HEIGHT - 6, x_name, "middle"))
    told = ", ".join(f"{name} {number(x)}, {number(y)}" for name, x, y in points)
    return _figure(title, f"{title} ({x_name}, {y_name}): {told}", body)


def thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """A thinner series of at most `most` points: means over equal runs; the series as it is where it is short
    enough."""
    if len(points) <= most:
        return list(points)
    edges = [round(i * len(points) / most) for i in range(most + 1)]
    runs = [points[a:b] for a, b in zip(edges, edges[1:], strict=False) if b > a]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Ascending round numbers that enclose low..high, about `about` steps apart. Takes finite numbers."""
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, last + 1)]


def number(value: float) -> str:
    """A number as short as an axis wants it."""
    value += 0.0  # no "-0"
    return f"{value:.3g}" if abs(value) < 1000 or abs(value) >= 1e6 else f"{value:.0f}"


def _inner_width() -> float:
    return WIDTH - LEFT - RIGHT


def _height_of(y: float, low: float, high: float) -> float:
    return TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _grid(ticks: Sequence[float], low: float, high: float) -> str:
    rows = []
    for tick in ticks:
        y = _height_of(tick, low, high)
        rows.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        rows.append(_text(LEFT - 5, y + 3, number(tick), "end"))
    return "".join(rows)


def _dot(place: str, radius: int = 2) -> str:
    x, y = place.split(",")
    return f'<circle class="dot" cx="{x}" cy="{y}" r="{radius}"/>'


def _text(x: float, y: float, text: str, anchor: str, css: str = "tick") -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _figure(title: str, description: str, body: Sequence[str], height: int = HEIGHT) -> str:
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(description)}">'
        f"{''.join(body)}</svg></figure>"
    )
