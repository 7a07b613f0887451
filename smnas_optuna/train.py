"""``python -m smnas_optuna.train``: train an exported config, on a GPU or without one."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from smnas_optuna.command_line import run_command
from smnas_optuna.errors import UserError

_METRIC = "val/coco/bbox_mAP"


def train(
    config: Annotated[Path, typer.Argument(help="An MMDetection config, such as export writes.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for logs and checkpoints; work_dirs/CONFIG if not given.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's last checkpoint.")] = False,
    amp: Annotated[bool, typer.Option("--amp", help="Train in mixed precision.")] = False,
) -> None:
    """Train the detector of CONFIG as it says, and print its mAP."""
    if not config.is_file():
        raise UserError(f"CONFIG {config}: no such file; expected one that smnas_optuna.export has written")
    import torch
    from mmdet.utils import register_all_modules
    from mmengine.config import Config
    from mmengine.runner import Runner

    import smnas_optuna.detector.layers  # before mmdet: provides mmcv's operators  # noqa: F401

    register_all_modules()
    try:
        loaded = Config.fromfile(str(config))
    except Exception as error:  # a config is a program, which may raise anything
        raise UserError(f"CONFIG {config}: cannot be read: {type(error).__name__}: {error}") from None
    loaded.work_dir = str(output or Path("work_dirs") / config.stem)
    loaded.resume = resume
    if amp:
        loaded.optim_wrapper.type = "AmpOptimWrapper"
        if not torch.cuda.is_available():
            raise UserError("--amp: torch sees no CUDA GPU here, and needs one for mixed precision")
    runner = Runner.from_cfg(loaded)
    runner.train()
    scalars = runner.message_hub.log_scalars
    # CocoMetric says nothing at all where nothing has been found.
    told = f"mAP {scalars[_METRIC].current():.3f}" if _METRIC in scalars else "nothing found, so no mAP,"
    print(f"{told} after {runner.epoch} epochs; checkpoints are in {loaded.work_dir}")


if __name__ == "__main__":
    sys.exit(run_command(train, "train"))
