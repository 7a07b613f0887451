"""Draws what the order says of a candidate, for the sampler's README.

    python docs/sampler_bounds.py

OptunaHub shows no vector graphics, so it is a PNG.
"""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

# OptunaHub takes the picture of this name for its list of packages, too.
PICTURE = Path(__file__).parent.parent / "samplers" / "partial_order_pruning" / "images" / "thumbnail.png"

_FRONT, _TRAINED, _DOMINATED, _PROMISING = "#3563a8", "#666666", "#b03a2e", "#2e7d4f"
# Cost and accuracy.
_ON_FRONT = [(1.0, 1.1), (3.1, 3.2), (6.8, 4.6), (9.6, 5.5)]
_LARGER, _SMALLER = (7.8, 2.2), (1.6, 0.45)


def picture() -> Figure:
    """Return the picture."""
    figure = Figure(figsize=(8, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlim=(0, 11.2), ylim=(0, 6.5), xticks=[], yticks=[])
    axes.set_xlabel("cost, known before training", loc="right")
    axes.set_ylabel("accuracy", loc="top")
    costs, accuracies = zip((1.0, 0.0), *_ON_FRONT, (11.2, 5.5), strict=True)
    axes.step(costs, accuracies, where="post", color=_FRONT, linewidth=2)
    axes.scatter(*zip(*_ON_FRONT, strict=True), color=_FRONT, s=45, zorder=3, label="trained, on the front")
    axes.scatter(*zip(_LARGER, _SMALLER, strict=True), color=_TRAINED, s=45, zorder=3, label="trained, others")
    axes.plot([], [], color="black", linewidth=3, label="what the order leaves possible")
    axes.legend(loc="upper left", frameon=False)

    axes.vlines(4.8, _SMALLER[1], _LARGER[1], color=_DOMINATED, linewidth=3)
    axes.hlines(_LARGER[1], 4.8, _LARGER[0], color=_DOMINATED, linestyle="dashed")
    axes.vlines(8.4, _SMALLER[1], _ON_FRONT[3][1], color=_PROMISING, linewidth=3)
    axes.hlines(_ON_FRONT[3][1], 8.4, _ON_FRONT[3][0], color=_PROMISING, linestyle="dashed")
    axes.add_patch(Ellipse((8.4, 4.7), 0.36, 1.2, color=_PROMISING, alpha=0.3))

    axes.text(3.25, 3.35, "z: better than the best\nthat x1 can be, and cheaper", color=_FRONT, va="bottom")
    axes.text(4.65, 1.2, "x1: not\ntrained", color=_DOMINATED, ha="right", va="center")
    axes.text(_LARGER[0], _LARGER[1] - 0.15, "y, larger\nthan x1", color=_TRAINED, ha="right", va="top")
    axes.text(_SMALLER[0] + 0.2, _SMALLER[1], "w, smaller than x1 and x2", color=_TRAINED, va="center")
    axes.text(8.6, 3.4, "x2: may rise above\nthe front; the surrogate\nsays how likely", color=_PROMISING, va="center")
    return figure


if __name__ == "__main__":
    picture().savefig(PICTURE, metadata={"Software": None})
