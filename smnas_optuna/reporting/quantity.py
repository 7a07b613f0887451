"""Quantity: the name, unit and number of digits with which a metric is shown."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

MISSING: Final = "\N{EN DASH}"


@dataclass(frozen=True)
class Quantity:
    """How the values of a metric or user attribute are shown.

    Args:
        title: Name in texts and on axes.
        unit: Unit in which values are shown; empty for numbers without a unit.
        note: Addition to the title on axes, such as the definition of the metric.
        scale: Stored value that is shown as 1, such as 1e9 for FLOPs in G.
        is_precision: Whether it is an average precision. These are shown with the same number of digits as in COCO's
            tables, and as missing if negative, since COCO's evaluation returns -1 if no such objects exist.
        is_count: Whether it is an integer, shown with all digits.
        short: Heading of a table's column, including the unit; empty to use the title.
    """

    title: str
    unit: str = ""
    note: str = ""
    scale: float = 1.0
    is_precision: bool = False
    is_count: bool = False
    short: str = ""

    def text(self, value: float | None) -> str:
        """Return a stored value with three significant digits in the shown unit; an en dash if missing."""
        if self.is_missing(value):
            return MISSING
        assert value is not None
        return f"{value / self.scale:.{self._decimals(value)}f}"

    def text_with_unit(self, value: float | None) -> str:
        """Return :meth:`text` followed by the unit."""
        return self.text(value) if self.is_missing(value) else f"{self.text(value)} {self.unit}".rstrip()

    def text_with_spread(self, value: float | None, spread: float | None) -> str:
        """Return ``value ± spread``, both with the decimals of the value; only the value if the spread is missing."""
        text = self.text(value)
        if value is None or spread is None or text == MISSING or math.isnan(spread):
            return text
        return f"{text} \N{PLUS-MINUS SIGN} {spread / self.scale:.{self._decimals(value)}f}"

    def is_missing(self, value: float | None) -> bool:
        """Return whether a value is missing: None, NaN, or a negative average precision."""
        return value is None or math.isnan(value) or (self.is_precision and value < 0)

    @property
    def axis_title(self) -> str:
        """Title with unit and note in parentheses."""
        remark = ", ".join(filter(None, (self.unit, self.note)))
        return f"{self.title} ({remark})" if remark else self.title

    @property
    def heading(self) -> str:
        """Heading of a table's column."""
        return self.short or self.title

    def _decimals(self, value: float) -> int:
        shown = abs(value / self.scale)
        if shown == 0 or not math.isfinite(shown):
            return 0
        if self.is_precision:
            return 3 if shown <= 1 else 1
        if self.is_count:
            return 0
        return max(0, 2 - math.floor(math.log10(shown)))


QUANTITIES: Final = {
    "map": Quantity("mAP", note="COCO metric, val", is_precision=True),
    "map_50": Quantity("AP50", is_precision=True),
    "map_75": Quantity("AP75", is_precision=True),
    "map_small": Quantity("AP small", is_precision=True, short="S"),
    "map_medium": Quantity("AP medium", is_precision=True, short="M"),
    "map_large": Quantity("AP large", is_precision=True, short="L"),
    "latency_ms": Quantity("inference time", unit="ms", short="ms"),
    "flops": Quantity("FLOPs", unit="G", note="multiply-adds", scale=1e9, short="GFLOPs"),
    "params": Quantity("params", unit="M", scale=1e6, short="params (M)"),
    "backbone_flops": Quantity("backbone FLOPs", unit="G", note="multiply-adds", scale=1e9, short="backbone GFLOPs"),
    "depth": Quantity("depth", is_count=True),
    "width": Quantity("width", is_count=True),
    "backbone_params": Quantity("backbone params", unit="M", scale=1e6, short="backbone params (M)"),
}

PRECISIONS: Final = tuple(name for name, quantity in QUANTITIES.items() if quantity.is_precision)
"""COCO's average precisions, by their names in trials."""


def quantity_of(metric: str) -> Quantity:
    """Return the quantity of a metric or user attribute; an unknown one has its name as title and no unit."""
    return QUANTITIES.get(metric, Quantity(metric))


def measured_text(metric: str, trial: Mapping[Any, Any]) -> str:
    """Return a trial's value of a metric as text; inference time has its spread.

    Args:
        metric: Name of the metric.
        trial: Values by name, such as user attributes. If the metric is missing, the text is an en dash.
    """
    spread = trial.get("latency_spread_ms") if metric == "latency_ms" else None
    return quantity_of(metric).text_with_spread(trial.get(metric), spread)
