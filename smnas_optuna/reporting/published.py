"""Published detectors of the SM-NAS paper and the installed MMDetection, to compare with those of a study.

Their times were measured elsewhere, with other software. Therefore figures show them in grey behind the study's
detectors, and they are never part of its front.
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

from smnas_optuna.detector.zoo import PAPERS_DETECTORS
from smnas_optuna.errors import UserError
from smnas_optuna.reporting.quantity import quantity_of
from smnas_optuna.reporting.study_results import StudyResults
from smnas_optuna.reporting.style import AFTER_COLOURS, LINE_WIDTH, OTHER_COLOUR, legend_name
from smnas_optuna.samplers.partial_order_pruning.dominance import non_dominated

Show = Literal["comparable", "all", "none"]

_TIME_KEY: Final = "inference time (ms/im)"
# Words that distinguish products whose other words are the same: an RTX 2080 Ti is not an RTX 2080, and a part of a GPU
# (MIG, GRID) is not the whole GPU.
_VARIANTS: Final = frozenset({"ti", "super", "laptop", "mobile", "max", "mig", "grid"})
# Annotations of COCO's 5,000 validation images, by their names of 2017 and of 2014.
_COCO_VAL: Final = re.compile(r"instances_(val2017|minival2014)\.json")
_COCO_FOLDER: Final = re.compile(r"(ms[-_]?)?coco([-_]?20\d\d)?", re.IGNORECASE)
_FAINT_GREY: Final = "rgba(138, 143, 152, 0.45)"
_SYMBOLS: Final = ("square-open", "circle-open", "triangle-up-open")
_BELOW_TRIALS: Final = -1


@dataclass(frozen=True)
class KnownDetector:
    """A detector with published accuracy and inference time.

    Args:
        name: Name that the source gives the detector.
        ap: COCO's average precision of boxes, 0 to 1.
        milliseconds: Inference time for one image on ``hardware``, in milliseconds.
        hardware: Device that the detector was timed on, as the source calls it.
        input_size: Input size ``WIDTHxHEIGHT``; None if not published.
        dataset: Data set that the average precision was measured on.
        source: Who published the numbers.
        split: Split of the data set; None if not published.
        precision: Numeric precision during timing, ``FP32`` or ``FP16``; None if not published.
        batch_size: Batch size during timing; None if not published.
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
        for entry in PAPERS_DETECTORS.values()
        if entry.milliseconds is not None
    ]


def mmdet_detectors(dataset: str = "COCO", hardware: str = "V100") -> list[KnownDetector]:
    """Return the detectors of the installed mmdet whose metafiles have both a box AP and an inference time.

    In mmdet 3.3.0, 202 of 589 models have a time, and 193 of these a box AP on COCO. All were timed on a V100 with a
    batch size of 1, 4 of them in FP16. Nearly all have the size 1333x800, even those whose configs test at 640x640.
    Neither mmdet nor torch is imported. The files are read once per process.

    Args:
        dataset: Data set as the metafiles call it; case is ignored.
        hardware: Device as the metafiles call it; case is ignored.

    Returns:
        The detectors, in the order of the metafiles. Empty if mmdet is not installed, or installed without metafiles.

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
    """Return whether a device is the product that times were published for.

    The device's name must have all words of the product's name, and no word that distinguishes another product: a
    ``Tesla V100-PCIE-32GB`` is a ``V100``, but a ``V100S`` and a virtual ``GRID V100-8Q`` are not.

    Args:
        device_name: Name of the device as trials record it.
        hardware: Name of the product, see :class:`KnownDetector`.
    """
    device, product = _words(device_name), _words(hardware)
    return bool(product) and product <= device and device & _VARIANTS <= product


def known_detectors(results: StudyResults, show: Show = "comparable") -> list[KnownDetector]:
    """Return the published detectors to show in the figures of a study.

    The list is empty unless both ``map`` and ``latency_ms`` are objectives of the study.

    Args:
        results: Results of any study.
        show: ``comparable`` for the detectors that were timed on one of the study's devices, if the study's data set is
            COCO; ``all`` for all published detectors; ``none`` for none. A data set counts as COCO if its validation
            annotations are called ``instances_val2017.json`` (or ``instances_minival2014.json``, the same images) and
            are in a folder with a name such as ``coco`` or ``coco2017``. Both are required, since other data sets often
            use one of these names, but hardly ever both.

    Raises:
        UserError: A metafile of mmdet is not YAML.
        ValueError: ``show`` has another value.
    """
    if show not in get_args(Show):
        raise ValueError(f"show {show!r}: expected one of {', '.join(get_args(Show))}")
    has_both_objectives = {"map", "latency_ms"} <= set(results.metrics)
    if show == "none" or not has_both_objectives:
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
    """Return a trace for each source and hardware: detectors as hollow grey markers, with a faint line for their front.

    The traces are for a plot with milliseconds along x and mAP, 0 to 1, along y. They are drawn behind all other
    traces. Markers and line are one trace, so that a click on the legend hides both: first the points on the front,
    then the others, each after a gap.
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
    """Return a percentage as a number from 0 to 1, without rounding errors of the division."""
    return round(percent / 100, 6)


def _devices(results: StudyResults) -> list[str]:
    """Return the names of the devices of a study's finished trials and of its first worker."""
    names = [trial.user_attrs.get("device") for trial in results.trials if trial.state == TrialState.COMPLETE]
    recorded = results.attributes.get("device")
    names.append(recorded.get("name") if isinstance(recorded, dict) else recorded)
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))


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
    """Return the detectors in the metafiles of an installed mmdet; empty if it has none, as a checkout of it."""
    try:
        source = f"MMDetection {version('mmdet')}"
    except PackageNotFoundError:
        source = "MMDetection"
    metafiles = sorted(folder.glob(".mim/configs/*/metafile.yml"))
    detectors = itertools.chain.from_iterable(_read_metafile(path, source) for path in metafiles)
    return tuple(dict.fromkeys(detectors))


def _read_metafile(path: Path, source: str) -> Iterator[KnownDetector]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: expected a metafile of mmdet in YAML: {_one_line(error)}") from None
    # Some files have the list of models at the top level, without the key Models.
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
    """Return a metafile's resolution, such as ``(800, 1333)`` with the height first, as ``1333x800``."""
    match = re.fullmatch(r"\((\d+), *(\d+)\)", str(resolution))
    return f"{match[2]}x{match[1]}" if match else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
