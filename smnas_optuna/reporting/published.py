"""Known detectors to see a study's beside: what the SM-NAS paper and the installed MMDetection publish of theirs.

Their times were measured elsewhere, with other software, so they stand beside a study's points, never among them.
"""

import html
import importlib.util
import itertools
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import plotly.graph_objects as go
import yaml
from optuna.trial import TrialState

from smnas_optuna.detector.zoo import DETECTORS
from smnas_optuna.errors import UserError
from smnas_optuna.reporting.quantity import quantity_of
from smnas_optuna.reporting.study_results import StudyResults
from smnas_optuna.reporting.style import AFTER_COLOURS, LINE_WIDTH, OTHER_COLOUR, legend_name
from smnas_optuna.samplers.partial_order_pruning.dominance import non_dominated

Show = Literal["comparable", "all", "none"]

_TIME_KEY: Final = "inference time (ms/im)"
# Words that make another product of a name that has them: an RTX 2080 Ti is no RTX 2080, a share of a GPU no GPU.
_VARIANTS: Final = frozenset({"ti", "super", "laptop", "mobile", "max", "mig", "grid"})
# The 5,000 images that APs "on COCO" are of, under the names of their annotations of 2017 and of 2014.
_COCO_VAL: Final = re.compile(r"instances_(val2017|minival2014)\.json")
_COCO_FOLDER: Final = re.compile(r"(ms[-_]?)?coco([-_]?20\d\d)?", re.IGNORECASE)
_FAINT_GREY: Final = "rgba(138, 143, 152, 0.45)"
_SYMBOLS: Final = ("square-open", "circle-open", "triangle-up-open")
_BELOW_TRIALS: Final = -1


@dataclass(frozen=True)
class KnownDetector:
    """A detector whose accuracy and inference time somebody has published.

    Args:
        name: What its source calls it.
        ap: Average precision of boxes by COCO's metric, 0 to 1.
        milliseconds: Inference time of one image, on ``hardware``.
        hardware: What it was timed on, in the source's words.
        input_size: ``WIDTHxHEIGHT``, in the order in which this package writes it; None where not told.
        dataset: What the precision was measured on.
        source: Who published it.
        split: Of the data set; None where not told.
        precision: Of the arithmetic, ``FP32`` or ``FP16``; None where not told.
        batch_size: Images at a time; None where not told.
    """

    name: str
    ap: float
    milliseconds: float
    hardware: str
    input_size: str | None
    dataset: str
    source: str
    split: str | None = None
    precision: str | None = None
    batch_size: int | None = None


def zoo_detectors() -> list[KnownDetector]:
    """Return the thirteen detectors of the SM-NAS paper's Tables 2 and 3, see ``detector/zoo.py``."""
    return [
        KnownDetector(
            name=entry.name,
            ap=_share(entry.ap),
            milliseconds=entry.milliseconds,
            hardware=entry.hardware,
            input_size=entry.input_size,
            dataset="COCO",
            source="SM-NAS paper",
            split=entry.split,
        )
        for entry in DETECTORS.values()
    ]


def mmdet_detectors(dataset: str = "COCO", hardware: str = "V100") -> list[KnownDetector]:
    """Return the detectors of the installed mmdet whose metafiles tell both a box AP and an inference time.

    mmdet 3.3.0 tells a time of 202 of its 589 models and a box AP on COCO of 193 of these, all of them timed on a
    V100, one image at a time, 4 in FP16. It gives one size to nearly all of them, 1333x800, even to those that its own
    configs test at 640x640. Neither mmdet nor torch is imported; the files are read once per process.

    Args:
        dataset: As the metafiles call it, whatever the case.
        hardware: Likewise.

    Returns:
        Them, in the order of the metafiles; none where mmdet is not installed or has come without its metafiles.

    Raises:
        UserError: A metafile is not YAML.
    """
    package = importlib.util.find_spec("mmdet")
    folders = package.submodule_search_locations if package else None
    return [
        detector
        for folder in folders or ()
        for detector in _read_package(Path(folder))
        if detector.dataset.casefold() == dataset.casefold() and detector.hardware.casefold() == hardware.casefold()
    ]


def is_comparable(device_name: str, hardware: str) -> bool:
    """Tell whether a device is the product that times were published for.

    It is when its name has every word of the product's and none that makes it another product: a
    ``Tesla V100-PCIE-32GB`` is a ``V100``, whatever its connector and memory; a ``V100S`` and a virtual
    ``GRID V100-8Q`` are not.

    Args:
        device_name: As trials record it.
        hardware: As :class:`KnownDetector` has it.
    """
    device, product = _words(device_name), _words(hardware)
    return bool(product) and product <= device and device & _VARIANTS <= product


def known_detectors(results: StudyResults, show: Show = "comparable") -> list[KnownDetector]:
    """Return the known detectors that belong beside a study's points.

    There is a place for them only where ``map`` and ``latency_ms`` are objectives.

    Args:
        results: Of any study.
        show: ``comparable`` for those timed on the product that the study's device is, or one of its devices, and
            only if the study's data are COCO: its recipe validates on COCO's own ``instances_val2017.json`` (or
            ``instances_minival2014.json``, the same images) within a folder called coco, coco2017 or the like. Both
            are asked for because data of one's own is often put under one of these names, hardly ever under both. A
            study does not record its classes. ``all`` for all of them, whatever the data and the device; ``none`` for
            none.

    Raises:
        UserError: A metafile of mmdet is not YAML.
    """
    if show not in get_args(Show):
        raise ValueError(f"show {show!r}: expected one of {', '.join(get_args(Show))}")
    has_place = {"map", "latency_ms"} <= set(results.metrics)
    if show == "none" or not has_place:
        return []
    devices = _devices(results) if show == "comparable" and _is_on_coco(results) else []
    if show == "comparable" and not devices:
        return []
    return [
        detector
        for detector in (*zoo_detectors(), *mmdet_detectors())
        if show == "all" or any(is_comparable(device, detector.hardware) for device in devices)
    ]


def known_traces(detectors: Sequence[KnownDetector]) -> list[go.Scatter]:
    """Draw detectors as hollow grey markers, a trace for each source and hardware, with a faint line for its front.

    For a panel with milliseconds along x and mAP, 0 to 1, along y. The traces lie below others in whatever order
    they are added. Markers and line are one trace, so that the legend hides both: the front comes first, the others
    follow with a gap before each.
    """
    groups: dict[tuple[str, str], list[KnownDetector]] = {}
    for detector in detectors:
        groups.setdefault((detector.source, detector.hardware), []).append(detector)
    return [
        _trace(f"{source}, {hardware}, measured elsewhere", members, symbol)
        for ((source, hardware), members), symbol in zip(groups.items(), itertools.cycle(_SYMBOLS), strict=False)
    ]


def _trace(name: str, detectors: Sequence[KnownDetector], symbol: str) -> go.Scatter:
    losses = np.array([[detector.milliseconds, -detector.ap] for detector in detectors])
    on_front = non_dominated(losses)
    order = np.lexsort((losses[:, 1], losses[:, 0]))
    front = [detectors[index] for index in order if on_front[index]]
    others = [detectors[index] for index in order if not on_front[index]]
    points = [*front, *itertools.chain.from_iterable((None, detector) for detector in others)]
    return go.Scatter(
        x=[point and point.milliseconds for point in points],
        y=[point and point.ap for point in points],
        hovertext=[point and _hover(point) for point in points],
        hoverinfo="text",
        mode="lines+markers",
        line={"shape": "hv", "width": 1, "color": _FAINT_GREY},
        marker={"symbol": symbol, "size": 5, "color": OTHER_COLOUR, "line": {"width": 1}},
        connectgaps=False,
        name=legend_name(name),
        legendrank=AFTER_COLOURS + 1,
        zorder=_BELOW_TRIALS,
    )


def _hover(detector: KnownDetector) -> str:
    precision, time = quantity_of("map"), quantity_of("latency_ms")
    data = " ".join(filter(None, (detector.dataset, detector.split)))
    batch = f"batch size {detector.batch_size}" if detector.batch_size else None
    conditions = ", ".join(filter(None, (detector.precision, batch)))
    name, *more_name = (f"<b>{html.escape(line)}</b>" for line in textwrap.wrap(detector.name, LINE_WIDTH))
    lines = [
        f"{precision.title} {precision.text(detector.ap)} ({data})",
        f"{time.title} {time.text_with_unit(detector.milliseconds)} on {detector.hardware}",
        f"input size {detector.input_size}" if detector.input_size else None,
        conditions,
        f"{detector.source}, measured elsewhere",
    ]
    return "<br>".join([name, *more_name, *(html.escape(line) for line in lines if line)])


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", text.casefold()))


def _share(percent: float) -> float:
    """Return a percentage as a share of 1, without the digits that a division would bring in."""
    return round(percent / 100, 6)


def _devices(results: StudyResults) -> list[str]:
    """Return the devices that a study's finished trials name, and the one that it agreed on."""
    named = [trial.user_attrs.get("device") for trial in results.trials if trial.state == TrialState.COMPLETE]
    agreed = results.attributes.get("device")
    named.append(agreed.get("name") if isinstance(agreed, dict) else agreed)
    return list(dict.fromkeys(name for name in named if isinstance(name, str)))


def _is_on_coco(results: StudyResults) -> bool:
    recipe = results.attributes.get("recipe")
    dataset = recipe.get("dataset") if isinstance(recipe, dict) else None
    if not isinstance(dataset, dict) or dataset.get("kind") != "coco":
        return False
    annotations = Path(dataset.get("root", "")) / dataset["val"]["annotations"]
    folders = annotations.parent.parts
    return bool(_COCO_VAL.fullmatch(annotations.name)) and any(map(_COCO_FOLDER.fullmatch, folders))


@cache
def _read_package(folder: Path) -> tuple[KnownDetector, ...]:
    """Read the metafiles that an mmdet carries; none where it has none, as in a checkout."""
    try:
        source = f"MMDetection {version('mmdet')}"
    except PackageNotFoundError:
        source = "MMDetection"
    metafiles = sorted(folder.glob(".mim/configs/*/metafile.yml"))
    found = itertools.chain.from_iterable(_read_metafile(path, source) for path in metafiles)
    return tuple(dict.fromkeys(found))


def _read_metafile(path: Path, source: str) -> Iterator[KnownDetector]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML, as a metafile of mmdet is expected to be: {_one_line(error)}") from None
    # Some are the list of models itself, without the collections before it.
    models = content.get("Models") if isinstance(content, dict) else content
    for model in models or ():
        times = (model.get("Metadata") or {}).get(_TIME_KEY) or ()
        results = [result for result in model.get("Results") or () if "box AP" in (result.get("Metrics") or {})]
        for time, result in itertools.product(times, results):
            yield KnownDetector(
                name=model["Name"],
                ap=_share(result["Metrics"]["box AP"]),
                milliseconds=float(time["value"]),
                hardware=time["hardware"],
                input_size=_input_size(time.get("resolution")),
                dataset=result["Dataset"],
                source=source,
                precision=time.get("mode"),
                batch_size=time.get("batch size"),
            )


def _input_size(resolution: Any) -> str | None:
    """Return ``1333x800`` for the ``(800, 1333)`` of a metafile, which has the height first."""
    match = re.fullmatch(r"\((\d+), *(\d+)\)", str(resolution))
    return f"{match[2]}x{match[1]}" if match else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
