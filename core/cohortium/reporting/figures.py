"""Positions of a plot's marks.

Templates draw the marks as SVG, and style sheets colour them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

Point = tuple[float, float]

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
"""Distances between ticks, times a power of ten."""

MIN_GAP = 15.0
"""Smallest distance between the lines of two labels."""

MAX_HINTS = 240
"""Most rounds of which each gets a hint under the pointer."""


@frozen(kw_only=True)
class Line:
    """One line of a plot.

    Attributes:
        name: The quantity that it shows.
        points: In the data's own units.
        tone: Number of its colour in the style sheet, from 1.
        label: Text at its end.
    """

    name: str
    points: tuple[Point, ...]
    tone: int
    label: str


@frozen(kw_only=True)
class Axis:
    """A linear scale.

    Attributes:
        low: Its lower end.
        high: Its upper end, above `low`.
        ticks: Numbers that are written next to it.
    """

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, numbers: Sequence[float], *, ticks: int = 5, most: float = math.inf) -> Axis:
        """Build an axis that contains `numbers` and ends on ticks.

        It does not exceed `most`.
        """
        low, high = min(numbers, default=0.0), max(numbers, default=1.0)
        if high - low < 1e-9:  # noqa: PLR2004
            low, high = low - 0.5, high + 0.5
        raw = (high - low) / max(ticks - 1, 1)
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(s * power for s in STEPS if s * power >= raw * (1 - 1e-9))
        first = math.floor(low / step + 1e-9)
        last = math.ceil(min(high, most) / step - 1e-9)
        marks = tuple(round(k * step, 10) for k in range(first, last + 1))
        return cls(low=marks[0], high=marks[-1], ticks=marks)

    @classmethod
    def rounds(cls, last: float, *, ticks: int = 6) -> Axis:
        """Build an axis from the first round to the `last`."""
        last = max(last, 2)
        inner = cls.over((0, last), ticks=ticks).ticks
        marks = [1.0, *(t for t in inner if t == int(t) and 1 < t < last), last]
        if len(marks) > 2 and last - marks[-2] < last / 12:  # noqa: PLR2004
            del marks[-2]
        return cls(low=1, high=last, ticks=tuple(marks))

    def text(self, number: float) -> str:
        """Return `number` with as many digits as the ticks need."""
        fine = (self.high - self.low) * 1e-6
        digits = next(d for d in range(12) if all(abs(round(t, d) - t) <= fine for t in self.ticks))
        return f"{number:.{digits}f}"

    def share(self, number: float) -> float:
        """Return the position of `number` on the axis, from 0 to 1."""
        return (number - self.low) / (self.high - self.low)


@frozen(kw_only=True)
class Label:
    """Word at the end of a line, moved from `at` to `y`."""

    text: str
    tone: int
    at: float
    y: float


@frozen(kw_only=True)
class Plot:
    """Lines over two axes, in a box of `width` by `height` units.

    Attributes:
        title: The plot's subject, for people who cannot see it.
        summary: The plot's content, for people who cannot see it.
        x: Horizontal axis.
        y: Vertical axis.
        lines: The lines to draw.
        limit: A marked level with its words, or None.
        unit: Name of the numbers of the horizontal axis.
    """

    title: str
    summary: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    limit: tuple[float, str] | None = None
    unit: str = "round"
    width: float = 460.0
    height: float = 232.0
    left: float = 44.0
    right: float = 116.0
    top: float = 12.0
    bottom: float = 30.0
    hints: tuple[tuple[float, str], ...] = field(default=())

    def px(self, number: float) -> float:
        """Return the distance from the left edge, in units."""
        return round(self.left + self.x.share(number) * (self.width - self.left - self.right), 2)

    def py(self, number: float) -> float:
        """Return the distance from the top edge, in units."""
        inner = self.height - self.top - self.bottom
        return round(self.top + (1 - self.y.share(number)) * inner, 2)

    def path(self, line: Line) -> str:
        """Return an SVG path through the points of `line`."""
        return "M" + "L".join(f"{self.px(x)},{self.py(y)}" for x, y in line.points)

    def area(self, line: Line) -> str:
        """Return a closed path between `line` and the lower edge."""
        first, last = self.px(line.points[0][0]), self.px(line.points[-1][0])
        floor = self.height - self.bottom
        return f"{self.path(line)}L{last},{floor}L{first},{floor}Z"

    @property
    def ends(self) -> float:
        """Distance from the left edge to the last line's end, in units."""
        return self.px(max((line.points[-1][0] for line in self.lines), default=self.x.high))

    def labels(self) -> tuple[Label, ...]:
        """Return a label for every line that has points, without overlaps."""
        found = sorted(
            (
                Label(text=line.label, tone=line.tone, at=at, y=at)
                for line in self.lines
                if line.points
                for at in (self.py(line.points[-1][1]),)
            ),
            key=lambda label: label.at,
        )
        floor = self.height - self.bottom
        for k, label in enumerate(found):
            least = found[k - 1].y + MIN_GAP if k else self.top
            found[k] = evolve(label, y=max(label.at, least))
        for k in reversed(range(len(found))):
            most = found[k + 1].y - MIN_GAP if k + 1 < len(found) else floor
            found[k] = evolve(found[k], y=min(found[k].y, most))
        return tuple(found)

    def columns(self) -> tuple[tuple[float, float, str], ...]:
        """Return left edge, width and words of each hint."""
        if len(self.hints) > MAX_HINTS:
            return ()
        wide = round((self.width - self.left - self.right) / max(self.x.high - self.x.low, 1), 2)
        return tuple((round(self.px(x) - wide / 2, 2), wide, text) for x, text in self.hints)
