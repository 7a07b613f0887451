"""Time of this package's operators and of mmcv's compiled ones, with the sizes for an image of 800x600.

    python -m benchmarks.operators [--device cuda|cpu] [--rounds N]

Both are called in the same way as by mmcv's Python code. If mmcv's compiled operators are not installed, only those of
this package are timed.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from types import ModuleType

import torch

from smnas_optuna.detector import mmcv_ops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    for line in compare(torch.device(arguments.device), arguments.rounds):
        print(line)


def compare(device: torch.device, rounds: int) -> Iterator[str]:
    """Yield the lines of a table: milliseconds of this package's and of mmcv's operators, and the ratio."""
    compiled = _compiled()
    yield f"\n{'operator':36}{'ours ms':>10}" + (f"{'mmcv ms':>10}{'ratio':>8}" if compiled else "")
    if compiled is None:
        yield "mmcv's compiled operators are not installed, so there is no comparison"
    for name, arguments in _calls(device).items():
        ours = _milliseconds(getattr(mmcv_ops, name), arguments, rounds, device)
        theirs = _milliseconds(getattr(compiled, name), arguments, rounds, device) if compiled else None
        comparison = f"{theirs:10.3f}{ours / theirs:8.2f}" if theirs else ""
        yield f"{name:36}{ours:10.3f}{comparison}"


def _compiled() -> ModuleType | None:
    spec = importlib.util.find_spec("mmcv._ext")
    if spec is None or spec.origin == mmcv_ops.__file__:
        return None
    import mmcv._ext

    return mmcv._ext  # type: ignore[no-any-return]  # mmcv is untyped


def _calls(device: torch.device) -> dict[str, dict[str, object]]:
    """Return arguments by operator: 4,700 proposals, 1,000 regions, 120,087 anchors, a feature map of 100x76."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, device=device)

    def boxes(number: int) -> torch.Tensor:
        corner = random(number, 2) * torch.tensor([700, 500], device=device)
        return torch.cat([corner, corner + 20 + 80 * random(number, 2)], dim=1)

    nothing = torch.zeros(0, device=device)
    regions = torch.cat([torch.zeros(1000, 1, device=device), boxes(1000)], dim=1)
    features = random(1, 128, 152, 200)
    roi_align = {
        "rois": regions,
        "argmax_y": nothing,
        "argmax_x": nothing,
        "aligned_height": 7,
        "aligned_width": 7,
        "spatial_scale": 0.25,
        "sampling_ratio": 0,
        "pool_mode": 1,
        "aligned": True,
    }
    gradient, crops = torch.zeros_like(features), torch.zeros(1000, 128, 7, 7, device=device)
    anchors, classes = 120_087, 80
    focal = {
        "input": random(anchors, classes) - 4,
        "target": torch.randint(0, classes + 1, (anchors,), generator=generator, device=device),
        "weight": nothing,
        "gamma": 2.0,
        "alpha": 0.25,
    }
    losses = torch.zeros(anchors, classes, device=device)
    geometry = dict.fromkeys(("kW", "kH"), 3) | dict.fromkeys(("dW", "dH", "padW", "padH", "group"), 1)
    geometry |= {"dilationW": 1, "dilationH": 1, "deformable_group": 4, "im2col_step": 1}
    deformed = {
        "input": random(1, 256, 76, 100),
        "weight": random(256, 256, 3, 3),
        "offset": random(1, 72, 76, 100) - 0.5,
        "output": torch.zeros(1, 256, 76, 100, device=device),
        "columns": torch.zeros(256 * 9, 7600, device=device),
        "ones": torch.ones(76, 100, device=device),
        **geometry,
    }
    return {
        "nms": {"boxes": boxes(4700), "scores": random(4700), "iou_threshold": 0.7, "offset": 0},
        "roi_align_forward": {"input": features, "output": crops, **roi_align},
        "roi_align_backward": {"grad_output": random(1000, 128, 7, 7), "grad_input": gradient, **roi_align},
        "sigmoid_focal_loss_forward": {"output": losses, **focal},
        "sigmoid_focal_loss_backward": {"grad_input": losses, **focal},
        "deform_conv_forward": deformed,
    }


def _milliseconds(
    operator: Callable[..., object], arguments: dict[str, object], rounds: int, device: torch.device
) -> float:
    taken = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        operator(**arguments)
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return 1000 * statistics.median(taken[1:])  # the first warms up


if __name__ == "__main__":
    main()
