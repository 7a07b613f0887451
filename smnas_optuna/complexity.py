"""``python -m smnas_optuna.complexity``: multiply-adds and parameters of a backbone or a published detector."""

import json
import warnings
from typing import Annotated, Any

import typer

from smnas_optuna.command_line import run_command
from smnas_optuna.detector.flops import backbone_costs, pad
from smnas_optuna.detector.zoo import DETECTORS, Published, find_backbone, find_detector
from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import InputSize
from smnas_optuna.parts.backbones.backbone import Backbone
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.levels import BACKBONE_LEVELS
from smnas_optuna.parts.model_config import model_config

_COCO_CLASSES = 80
_DEFAULT_INPUT = "224x224"


def complexity(
    code: Annotated[
        str | None, typer.Argument(metavar="CODE", help="Backbone code, classic backbone such as R50, or zoo name.")
    ] = None,
    input_size: Annotated[
        str | None,
        typer.Option(
            "--input", metavar="WxH", help="Input size; the published one of a zoo detector, 224x224 otherwise."
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(min=1, help="Include a classifier for this number of classes; without one if not given."),
    ] = None,
    zoo: Annotated[str | None, typer.Option(help=f"A published detector: {', '.join(DETECTORS)}.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with integers.")] = False,
) -> None:
    """Print the multiply-adds and parameters of the backbone CODE, and for a zoo detector those of the whole detector.

    The sides of the input are padded to multiples of 32. Convolutions and matrix products are counted, normalisation is
    not.
    """
    # MMDetection calls what torch has deprecated since.
    warnings.filterwarnings("ignore", module="mmdet")
    name = zoo or code
    if name is None or (zoo and code):
        raise UserError("CODE: expected a backbone code, a classic backbone or a zoo name, or --zoo NAME instead")
    try:
        published = find_detector(name) if zoo or name.upper() in map(str.upper, DETECTORS) else None
        size = InputSize.parse(input_size or (published.input_size if published else _DEFAULT_INPUT))
        costs: dict[str, Any] = {"input": str(size)}
        if published is None or published.architecture is not None:
            backbone = find_backbone(name)
            flops, params = _count_backbone(backbone, size, classes)
            costs |= {"backbone": str(backbone), "classes": classes, "flops": flops, "params": params}
    except ValueError as error:
        raise UserError(str(error)) from None
    if published is not None:
        costs["detector"] = _count_detector(published, size)
        # Without a backbone to report, the top level has the costs of the whole detector.
        costs = {"flops": costs["detector"]["flops"], "params": costs["detector"]["params"]} | costs
    if as_json:
        print(json.dumps(costs, indent=2))
        return
    if "backbone" in costs:
        head = f" with a classifier of {classes}" if classes else ""
        print(f"{costs['backbone']}{head}: {_text(costs)} at {size}")
    if published is not None:
        whole = costs["detector"]
        what = published.architecture or published.config
        print(f"{published.name}, {what}, {_COCO_CLASSES} classes: {_text(whole)} at {size}")
        time = f", {published.milliseconds} ms on a {published.hardware}" if published.milliseconds else ""
        print(
            f"published: {published.ap} AP on COCO {published.split}{time} at {published.input_size} "
            f"({published.source})"
        )


def _count_backbone(backbone: Backbone, size: InputSize, classes: int | None) -> tuple[int, int]:
    code = backbone.code
    if code is not None and (backbone == code or code.is_published):
        return backbone_costs(code, size, classes=classes)
    # No code describes this backbone exactly, such as a narrowed one, or MobileNetV2 without its last convolution.
    from smnas_optuna.detector.counting import count_backbone  # imports torch, which codes do not need

    flops, params = count_backbone(backbone.config(BACKBONE_LEVELS, Detector()), pad(size))
    if classes:
        (channels,) = backbone.channels(BACKBONE_LEVELS[-1:])
        flops, params = flops + channels * classes, params + (channels + 1) * classes
    return flops, params


def _count_detector(published: Published, size: InputSize) -> dict[str, Any]:
    from smnas_optuna.detector.counting import count_costs, published_model

    if published.architecture is not None:
        model = model_config(published.architecture, classes=_COCO_CLASSES, detector=Detector())
        what = {"architecture": str(published.architecture)}
    else:
        assert published.config is not None
        model = published_model(published.config)
        what = {"config": str(published.config)}
    flops, params = count_costs(model, size)
    return {**what, "classes": _COCO_CLASSES, "flops": flops, "params": params}


def _text(costs: dict[str, Any]) -> str:
    return f"{costs['flops'] / 1e9:.3f} GFLOPs (multiply-adds), {costs['params'] / 1e6:.3f} M parameters"


if __name__ == "__main__":
    run_command(complexity, "complexity")
