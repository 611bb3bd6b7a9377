"""Charts of a report as SVG images, by matplotlib, with a text for those who cannot see them.

Rules:
- Bars stand at their time, so an hour without statements is a gap. Nothing is joined across it.
- Colours are those of Okabe and Ito, which colour-blind people can tell apart. States differ by hatching too.
- An image has no date and no random id: the same figures give the same bytes.
"""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from custody.report.figures import Bucket, Unit

BLUE, GREEN, ORANGE, VERMILION, GREY = "#0072B2", "#009E73", "#E69F00", "#D55E00", "#999999"
STATES = (
    ("verified", "verified", GREEN, ""),
    ("pending", "not read yet", ORANGE, "///"),
    ("damaged", "damaged", VERMILION, "xxx"),
    ("expired", "expired", GREY, "..."),
)
"""Of each state of statements: its name, its words, its colour and its hatching."""
_SIZES = ("B", "kB", "MB", "GB", "TB", "PB")
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "custody",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.alpha": 0.35,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
    "timezone": "UTC",
}


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart.

    Attributes:
        title: its heading.
        source: the image, as a `data:` address.
        text: what it shows, in words.
    """

    title: str
    source: str
    text: str


def size_text(size: float) -> str:
    """Return a number of bytes for people, such as `4.8 MB`."""
    divisor, unit = size_unit(size)
    return f"{size / divisor:,.1f} {unit}" if divisor > 1 else f"{size:,.0f} B"


def wait_text(seconds: float) -> str:
    """Return a span for people: seconds, minutes, hours or days."""
    divisor, unit = wait_unit(seconds)
    return f"{seconds / divisor:,.1f} {unit}"


def size_unit(size: float) -> tuple[float, str]:
    """Return the unit that suits a number of bytes, and how many bytes it has."""
    power = next((power for power in range(len(_SIZES) - 1) if abs(size) < 1000 ** (power + 1)), len(_SIZES) - 1)
    return 1000**power, _SIZES[power]


def wait_unit(seconds: float) -> tuple[float, str]:
    """Return the unit that suits a span, and how many seconds it has."""
    units = ((120, 1, "s"), (7_200, 60, "min"), (172_800, 3_600, "h"))
    return next(((divisor, unit) for limit, divisor, unit in units if abs(seconds) < limit), (86_400, "d"))


def draw(buckets: Sequence[Bucket], unit: Unit) -> list[Chart]:
    """Return the charts of figures by time; none for a single bucket, since the table has its figures."""
    if len(buckets) < 2:
        return []
    with mpl.rc_context(_STYLE):
        return [
            _coverage(buckets, unit),
            _bars(buckets, unit, "Events", lambda bucket: bucket.tally.events, lambda _: (1, "events")),
            _bars(buckets, unit, "Stored, compressed", lambda bucket: bucket.tally.stored, size_unit),
            _bars(buckets, unit, "Longest wait until sealed", lambda bucket: bucket.wait or 0, wait_unit),
        ]


def _axes(buckets: Sequence[Bucket], ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 2.1), layout="constrained")
    axes = figure.add_subplot()
    locator = AutoDateLocator(tz=UTC, minticks=3, maxticks=8)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(_dates(locator))
    axes.set_xlim(_number(buckets[0].start), _number(buckets[-1].end))
    axes.set_ylabel(ylabel)
    return figure, axes


def _dates(locator: AutoDateLocator) -> ConciseDateFormatter:
    """Return a formatter by which each label says its day or its month: two months or years may be in one chart."""
    return ConciseDateFormatter(  # type: ignore[no-untyped-call]
        locator,
        tz=UTC,
        formats=["%Y", "%b %Y", "%d %b", "%H:%M", "%H:%M", "%H:%M:%S"],
        zero_formats=["%Y", "%b %Y", "%d %b", "%d %b", "%H:%M", "%H:%M"],
        show_offset=False,
    )


def _number(moment: datetime) -> float:
    return float(date2num(moment))  # type: ignore[no-untyped-call]


def _bounds(buckets: Sequence[Bucket]) -> tuple[list[float], list[float]]:
    """Return where the bars begin, and how wide they are."""
    starts = [_number(bucket.start) for bucket in buckets]
    widths = [0.88 * (_number(bucket.end) - start) for bucket, start in zip(buckets, starts, strict=True)]
    return starts, widths


def _coverage(buckets: Sequence[Bucket], unit: Unit) -> Chart:
    figure, axes = _axes(buckets, "statements")
    starts, widths = _bounds(buckets)
    below = [0.0] * len(buckets)
    said = []
    for name, words, colour, hatch in STATES:
        values = [getattr(bucket.tally, name) for bucket in buckets]
        said.append(f"{sum(values):,} {words}")
        if any(values):
            axes.bar(
                starts,
                values,
                widths,
                below,
                align="edge",
                label=words,
                color=colour,
                hatch=hatch,
                edgecolor="white" if name == "verified" else "black",
                linewidth=0,
            )
            below = [base + value for base, value in zip(below, values, strict=True)]
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_ylim(0, max(below) * 1.05 or 1)
    figure.legend(loc="outside upper right", ncols=len(STATES), frameon=False)
    text = f"Statements by the {unit} they were sealed: {', '.join(said)}. {_span(buckets, unit)}"
    return Chart(f"Statements, by {unit}, and whether an audit has read them", _source(figure), text)


def _bars(
    buckets: Sequence[Bucket],
    unit: Unit,
    title: str,
    value_of: Callable[[Bucket], float],
    unit_of: Callable[[float], tuple[float, str]],
) -> Chart:
    most = max(buckets, key=value_of)
    divisor, words = unit_of(value_of(most))
    figure, axes = _axes(buckets, words)
    starts, widths = _bounds(buckets)
    values = [value_of(bucket) / divisor for bucket in buckets]
    axes.bar(starts, values, widths, align="edge", color=BLUE, linewidth=0)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=max(values) > 4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    top, bottom = max(max(values), 0), min(min(values), 0)
    axes.set_ylim(bottom * 1.05, top * 1.05 if top or bottom else 1)
    text = f"{title}, by {unit}: at most {value_of(most) / divisor:,.4g} {words}, {most.name(unit)}."
    return Chart(f"{title}, by {unit}", _source(figure), f"{text} {_span(buckets, unit)}")


def _span(buckets: Sequence[Bucket], unit: Unit) -> str:
    return f"From {buckets[0].name(unit)} to {buckets[-1].name(unit)}."


def _source(figure: Figure) -> str:
    made = io.StringIO()
    figure.savefig(made, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    # Without the XML head, whose document type names an address.
    svg = made.getvalue()
    svg = svg[svg.index("<svg") :]
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
