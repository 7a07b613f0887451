"""The model card of a detector that a search has found: what it is, how good, how fast, and how to use it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import metadata
from typing import Any, Final

from smnas_optuna.reporting.quantity import PRECISIONS, measured_text, quantity_of
from smnas_optuna.study.budget import duration_text
from smnas_optuna.training.job import BestWritten

_SIZES: Final = {"map_small": "under 32x32", "map_medium": "up to 96x96", "map_large": "over 96x96"}
_PACKAGES: Final = ("smnas_optuna", "mmdet", "mmengine", "mmcv-lite", "timm", "torch")

USE: Final = """\
from smnas_optuna.predict import load_detector

detector = load_detector("{folder}")
print(detector("photo.jpg"))
"""
"""Python that uses a detector; ``folder`` has to be filled in."""


@dataclass(frozen=True)
class CardFacts:
    """What a card says of a detector.

    Args:
        source: Where it was found, such as ``photos/structural trial 7``.
        data: Where the data are.
        train_images: Number of training images with objects.
        weights: What the search's training started from, in words.
        measured: User attributes of the trial that has trained it.
        remark: Why these weights are used; empty where there is nothing to explain.
    """

    source: str
    data: str
    train_images: int
    weights: str
    measured: Mapping[str, Any]
    remark: str = ""


def model_card(facts: CardFacts, written: BestWritten) -> str:
    """Return a model card as Markdown.

    Args:
        facts: What the detector is.
        written: What its folder contains.
    """
    measured = facts.measured
    onnx = (
        f"There is no ONNX file: {written.onnx}."
        if written.onnx
        else "`detector.onnx` detects in one image of a fixed size."
    )
    sections = [
        f"# {measured['architecture']}\n\nAn object detector that smnas_optuna found as {facts.source}. {facts.remark}",
        _section("How to use it", f"```python\n{USE.format(folder='best').rstrip()}\n```"),
        "From the command line: `python -m smnas_optuna.predict best photo.jpg`. MMDetection reads `config.py` and "
        f"`weights.pth`. {onnx}",
        _section("Accuracy", _accuracy(measured, written)),
        _section("Speed", _speed(measured)),
        _section("Data", _data(facts, written)),
        _section("Training", _training(facts)),
        _section("Licences", _licences(facts, written)),
        _section("Detections", "\n".join(f"![]({path})" for path in written.pictures)),
    ]
    return "\n\n".join(section.rstrip() for section in sections) + "\n"


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    head, *body = rows
    lines = [head, tuple("---" for _ in head), *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _accuracy(measured: Mapping[str, Any], written: BestWritten) -> str:
    precisions = [("metric", "value")]
    for name in PRECISIONS:
        size = f", {_SIZES[name]} pixels" if name in _SIZES else ""
        precisions.append((f"{quantity_of(name).title}{size}", measured_text(name, measured)))
    classes = [("class", "mAP"), *((name, quantity_of("map").text(value)) for name, value in written.classes.items())]
    return (
        f"COCO's metrics on {written.val_images} validation images, by which the search has chosen, so expect a little "
        f"less on new images.\n\n{_table(precisions)}\n\n{_table(classes)}"
    )


def _speed(measured: Mapping[str, Any]) -> str:
    latency = f"{measured_text('latency_ms', measured)} ms"
    return (
        f"{latency} for an image on {measured['device']}, with torch, batch size 1, "
        f"{quantity_of('flops').text_with_unit(measured['flops'])}FLOPs, "
        f"{quantity_of('params').text_with_unit(measured['params'])} parameters."
    )


def _data(facts: CardFacts, written: BestWritten) -> str:
    return (
        f"`{facts.data}`: {facts.train_images} training images with objects, {written.val_images} validation images; "
        f"classes {', '.join(written.classes)}."
    )


def _training(facts: CardFacts) -> str:
    seconds = duration_text(facts.measured["train_seconds"])
    start = facts.measured["weights"]
    before = "" if start == facts.weights else f", which was trained from {facts.weights}"
    return f"Trained for {seconds}, from {start}{before}."


def _licences(facts: CardFacts, written: BestWritten) -> str:
    code = "\n".join(f"- {package}: {_licence(package)}" for package in _PACKAGES)
    weights = (
        "The weights were trained from scratch on the data above."
        if facts.weights == "scratch"
        else f"The weights were trained from {facts.weights}; {written.licence}. Whether the images that those "
        "were trained on, such as ImageNet's, permit your use is for you to judge."
    )
    return f"Code:\n\n{code}\n\n{weights} The licence of your data applies as well."


def _licence(package: str) -> str:
    """Return the licence that an installed package declares."""
    declared = metadata(package)
    classifiers = [each.rpartition(" :: ")[2] for each in declared.get_all("Classifier") or () if "License ::" in each]
    texts = [*(declared.get_all("License-Expression") or ()), *classifiers, *(declared.get_all("License") or ())]
    return next(iter(texts), "not declared")
