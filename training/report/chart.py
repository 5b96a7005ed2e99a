"""Small charts as inline SVG: axes, lines, dots, bars, with text that stays text.

Drawn by hand instead of by a plotting library: a chart of a report is a few hundred bytes, its
labels scale with the page, can be searched and read aloud, and every mark can carry a tooltip.
Everything that enters a chart is escaped here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

INK = "#1f2a37"
MUTED = "#5d6b7a"
GRID = "#e4e9ef"
ACCENT = "#1f5fa8"
"""The project's own result: EAG-RL, the best path, totals."""
WARM = "#c8641a"
"""What stands against the accent: the attention reward, kept trajectories."""
GREEN = "#1a7f6c"
"""The expert."""
PURPLE = "#7a5bb5"
GREY = "#97a3b0"
RED = "#b3372f"
"""Failures."""

_CHARACTER_WIDTH = 6.6
"""Average width of a character at the charts' font size of 11.5 px: text has no metrics here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LegendEntry:
    """One colour of a figure; the page writes legends under a figure, where they can wrap."""

    label: str
    colour: str
    is_dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A picture with what the page writes around it."""

    title: str
    svg: Markup
    legend: tuple[LegendEntry, ...] = ()
    note: str = ""
    is_wide: bool = False
    """Drawn at its own size in a box that scrolls sideways, instead of shrinking with the page."""


def present(figures: Sequence[Figure | None]) -> list[Figure]:
    """The figures that there are."""
    return [figure for figure in figures if figure is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis: its range, and optionally its own ticks."""

    low: float
    high: float
    label: str = ""
    ticks: tuple[float, ...] | None = None
    tick_labels: tuple[str, ...] | None = None

    def positions(self) -> tuple[float, ...]:
        """Where the ticks are."""
        return nice_ticks(self.low, self.high) if self.ticks is None else self.ticks

    def labels(self) -> tuple[str, ...]:
        """What the ticks say."""
        return tick_texts(self.positions()) if self.tick_labels is None else self.tick_labels


def nice_ticks(low: float, high: float, most: int = 6) -> tuple[float, ...]:
    """At most `most` round numbers inside the range."""
    span = high - low
    if span <= 0:
        return (low,)
    power = 10.0 ** math.floor(math.log10(span / most))
    spacing = next(
        (power * factor for factor in (1, 2, 5) if span / (power * factor) <= most - 1), power * 10
    )
    first, last = math.ceil(low / spacing - 1e-9), math.floor(high / spacing + 1e-9)
    return tuple(index * spacing for index in range(first, last + 1))


def tick_texts(ticks: Sequence[float]) -> tuple[str, ...]:
    """The ticks with as many decimals as they all need, at most six."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    decimals = next(
        (
            digits
            for digits in range(6)
            # relative: a tick is a product of floats, not the round number itself
            if all(abs(round(tick, digits) - tick) <= 1e-6 * largest for tick in ticks)
        ),
        6,
    )
    return tuple(f"{tick:,.{decimals}f}" if tick else "0" for tick in ticks)


def padded_range(values: Sequence[float], *, include: Sequence[float] = ()) -> tuple[float, float]:
    """A range that holds the values with some air, never empty."""
    every = [value for value in (*values, *include) if math.isfinite(value)]
    if not every:
        return 0.0, 1.0
    low, high = min(every), max(every)
    air = 0.06 * (high - low) or max(abs(high) * 0.1, 0.05)
    return (
        low if low in include else low - air,
        high if high in include and high > low else high + air,
    )


def text_width(text: str) -> float:
    """About how wide a text is in a chart."""
    return _CHARACTER_WIDTH * len(text)


def shortened(text: str, most: int) -> str:
    """The text on one line, cut to `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "\u2026"


def step_axis(steps: Sequence[float], label: str = "step") -> Axis:
    """An axis of whole steps."""
    low, high = (min(steps), max(steps)) if steps else (0, 1)
    ticks = tuple(tick for tick in nice_ticks(low, high) if float(tick).is_integer())
    air = 0.04 * (high - low) or 0.5
    return Axis(low=low - air, high=high + air, label=label, ticks=ticks or (low,))


def document(width: float, height: float, label: str, body: Sequence[Markup]) -> Markup:
    """An SVG element with an accessible name."""
    return Markup(
        '<svg viewBox="0 0 {0:.0f} {1:.0f}" width="{0:.0f}" height="{1:.0f}" role="img" '
        'aria-label="{2}">{3}</svg>'
    ).format(width, height, label, Markup("").join(body))


@dataclass(slots=True)
class Chart:
    """A plotting area with two axes, to which marks are added in data coordinates."""

    label: str
    """Accessible name of the picture."""
    x: Axis
    y: Axis
    width: float = 440
    height: float = 280
    left: float = 54
    right: float = 14
    top: float = 12
    bottom: float = 40
    has_grid: bool = True
    _marks: list[Markup] = field(default_factory=list)

    def at_x(self, value: float) -> float:
        """Pixel column of a value."""
        share = (value - self.x.low) / (self.x.high - self.x.low)
        return self.left + share * (self.width - self.left - self.right)

    def at_y(self, value: float) -> float:
        """Pixel row of a value."""
        share = (value - self.y.low) / (self.y.high - self.y.low)
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)

    def line(
        self,
        points: Sequence[tuple[float, float]],
        colour: str,
        *,
        width: float = 2,
        is_dashed: bool = False,
        tip: str = "",
    ) -> None:
        """A line through the points."""
        if len(points) < 2:
            return
        path = "M" + "L".join(f"{self.at_x(x):.1f} {self.at_y(y):.1f}" for x, y in points)
        dash = Markup(' stroke-dasharray="5 4"') if is_dashed else ""
        self._marks.append(
            Markup(
                '<path d="{}" fill="none" stroke="{}" stroke-width="{}" stroke-linejoin="round"{}>'
                "{}</path>"
            ).format(path, colour, width, dash, title(tip))
        )

    def dot(
        self,
        x: float,
        y: float,
        colour: str,
        *,
        radius: float = 3.5,
        is_hollow: bool = False,
        tip: str = "",
    ) -> None:
        """A dot at a point."""
        self._marks.append(
            Markup(
                '<circle cx="{:.1f}" cy="{:.1f}" r="{:.1f}" fill="{}" stroke="{}" '
                'stroke-width="1.5">{}</circle>'
            ).format(
                self.at_x(x),
                self.at_y(y),
                radius,
                "#fff" if is_hollow else colour,
                colour if is_hollow else "#fff",
                title(tip),
            )
        )

    def bar(
        self, x: tuple[float, float], y: tuple[float, float], colour: str, *, tip: str = ""
    ) -> None:
        """A filled rectangle between two corners."""
        left, right = sorted(self.at_x(value) for value in x)
        top, bottom = sorted(self.at_y(value) for value in y)
        self._marks.append(
            Markup(
                '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}">{}</rect>'
            ).format(left, top, max(right - left, 0.6), max(bottom - top, 0.6), colour, title(tip))
        )

    def text(
        self, x: float, y: float, text: str, *, colour: str = MUTED, anchor: str = "start"
    ) -> None:
        """A text beside a point, on its line."""
        self._marks.append(
            Markup('<text x="{:.1f}" y="{:.1f}" fill="{}" text-anchor="{}">{}</text>').format(
                self.at_x(x), self.at_y(y) + 4, colour, anchor, text
            )
        )

    def render(self) -> Markup:
        """The whole picture."""
        return document(self.width, self.height, self.label, [*self._axes(), *self._marks])

    def _axes(self) -> list[Markup]:
        right, bottom = self.width - self.right, self.height - self.bottom
        parts: list[Markup] = []
        for tick, text in zip(self.y.positions(), self.y.labels(), strict=True):
            row = self.at_y(tick)
            if self.has_grid:
                parts.append(_rule(self.left, row, right, row, GRID))
            parts.append(_label(self.left - 7, row + 4, text, "end"))
        for tick, text in zip(self.x.positions(), self.x.labels(), strict=True):
            column = self.at_x(tick)
            if self.has_grid:
                parts.append(_rule(column, self.top, column, bottom, GRID))
            parts.append(_label(column, bottom + 16, text, "middle"))
        parts.append(_rule(self.left, bottom, right, bottom, GREY))
        middle = (self.left + right) / 2
        if self.x.label:
            parts.append(_label(middle, self.height - 5, self.x.label, "middle"))
        if self.y.label:
            row = (self.top + bottom) / 2
            parts.append(
                Markup(
                    '<text transform="translate(12 {:.1f}) rotate(-90)" fill="{}" '
                    'text-anchor="middle">{}</text>'
                ).format(row, MUTED, self.y.label)
            )
        return parts


def title(text: str) -> Markup:
    """A tooltip for the element that it is put into, or nothing."""
    return Markup("<title>{}</title>").format(text) if text else Markup("")


def mixed(light: tuple[int, int, int], dark: tuple[int, int, int], share: float) -> str:
    """The colour that lies `share` of the way from light to dark."""
    share = min(1.0, max(0.0, share))
    return "#" + "".join(
        f"{round(a + (b - a) * share):02x}" for a, b in zip(light, dark, strict=True)
    )


def _rule(x1: float, y1: float, x2: float, y2: float, colour: str) -> Markup:
    return Markup('<path d="M{:.1f} {:.1f}L{:.1f} {:.1f}" stroke="{}"/>').format(
        x1, y1, x2, y2, colour
    )


def _label(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" fill="{}" text-anchor="{}">{}</text>').format(
        x, y, MUTED, anchor, escape(text)
    )
