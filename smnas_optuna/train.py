"""``python -m smnas_optuna.train``: train an exported config, on a GPU or without one."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from smnas_optuna.command_line import run_command
from smnas_optuna.errors import UserError
from smnas_optuna.evaluation.distributed import is_first, is_launched, join, told_once
from smnas_optuna.evaluation.scoring import FINAL_PRECISIONS


def train(
    config: Annotated[Path, typer.Argument(help="An MMDetection config, such as export writes.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for logs and checkpoints; work_dirs/CONFIG if not given.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's last checkpoint.")] = False,
    amp: Annotated[bool, typer.Option("--amp", help="Train in mixed precision.")] = False,
) -> None:
    """Train the detector of CONFIG as it says, and print its mAP.

    On several GPUs: torchrun --nproc-per-node 8 -m smnas_optuna.train CONFIG
    """
    with told_once():
        if not config.is_file():
            raise UserError(f"CONFIG {config}: no such file; expected one that smnas_optuna.export has written")
        loaded = _read(config)
        from smnas_optuna.evaluation.device import kind_of_device  # loads torch, for which no mistake has to wait

        kind = kind_of_device(amp=amp)
    loaded.work_dir = str(output or Path("work_dirs") / config.stem)
    loaded.resume = resume
    if amp:
        loaded.optim_wrapper.type = "AmpOptimWrapper"
    if is_launched():
        join(loaded, kind)
    from mmengine.runner import Runner

    import smnas_optuna.evaluation.checkpoint  # lets torch load MMEngine's checkpoints  # noqa: F401

    runner = Runner.from_cfg(loaded)
    runner.train()
    scalars = runner.message_hub.log_scalars
    measured = [(name, f"val/{key}") for key, name in FINAL_PRECISIONS.items() if f"val/{key}" in scalars]
    # CocoMetric says nothing at all where nothing has been found.
    told = ", ".join(f"{name} {scalars[key].current():.3f}" for name, key in measured) or "nothing found, so no mAP,"
    if is_first():
        print(f"{told} after {runner.epoch} epochs; checkpoints are in {loaded.work_dir}")


def _read(config: Path) -> Any:
    """Return the MMEngine config in a file, whose modules can be built then; raises UserError."""
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    import smnas_optuna.detector.layers  # before mmdet: provides mmcv's operators  # noqa: F401

    register_all_modules()
    try:
        return Config.fromfile(str(config))
    except Exception as error:  # a config is a program, which may raise anything
        raise UserError(f"CONFIG {config}: cannot be read: {type(error).__name__}: {error}") from None


if __name__ == "__main__":
    sys.exit(run_command(train, "train"))
