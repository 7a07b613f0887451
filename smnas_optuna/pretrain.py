"""``python -m smnas_optuna.pretrain``: train a backbone as a classifier, to initialise detectors with its weights."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from smnas_optuna.command_line import run_command, writable_folder
from smnas_optuna.data.image_folder import check_image_folder
from smnas_optuna.detector.flops import backbone_costs
from smnas_optuna.detector.zoo import DETECTORS, find_backbone
from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import InputSize
from smnas_optuna.parts.backbones.searched import BackboneCode
from smnas_optuna.timing.cores import usable_cores
from smnas_optuna.training.distributed import is_first, process_count, processes_here, report_error_once


def pretrain(
    code: Annotated[
        str, typer.Argument(metavar="CODE", help="Backbone code, classic backbone such as R50, or zoo name such as E2.")
    ],
    data: Annotated[Path, typer.Option(help="Folder with images as train/CLASS/*.jpg and val/CLASS/*.jpg.")],
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for logs, the checkpoint and backbone.pth; work_dirs/pretrain/CODE if not given."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Number of passes over the training images.")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step, summed over all processes.")] = 256,
    lr: Annotated[
        float, typer.Option(help="Highest learning rate for a batch of 256 images; scaled with the batch size.")
    ] = 0.1,
    input_size: Annotated[int, typer.Option("--input", min=32, help="Crop size in pixels.")] = 224,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Processes that load images, for each training process; its share of the cores if not given."
        ),
    ] = None,
    amp: Annotated[bool, typer.Option("--amp", help="Train in mixed precision.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the checkpoint in the output folder.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial weights, the order of images and crops.")] = 0,
) -> None:
    """Train the backbone CODE as a classifier, and write OUTPUT/backbone.pth for export --weights.

    On several GPUs: torchrun --nproc-per-node 8 -m smnas_optuna.pretrain CODE --data FOLDER
    """
    processes = process_count()
    with report_error_once():
        try:
            backbone = find_backbone(code)
            if isinstance(backbone, BackboneCode):
                backbone_costs(backbone, InputSize(input_size, input_size))  # raises ValueError if it cannot be built
        except ValueError as error:
            raise UserError(f"CODE: {error}") from None
        if lr <= 0:
            raise UserError(f"--lr {lr:g}: expected more than 0")
        if batch_size % processes or batch_size // processes < 2:
            raise UserError(f"--batch-size {batch_size}: expected two images or more for each of {processes} processes")
        classes = check_image_folder(data)
        folder = writable_folder(output or Path("work_dirs/pretrain") / str(backbone))
        # Imports torch, so only after the arguments are checked.
        from smnas_optuna.timing.device import kind_of_device
        from smnas_optuna.training import classification

        kind = kind_of_device(amp=amp)
        pretraining = classification.Pretraining(
            backbone=backbone,
            data=data.resolve(),
            classes=classes,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            input_size=input_size,
            workers=len(usable_cores()) // processes_here() if workers is None else workers,
            amp=amp,
            seed=seed,
            folder=folder,
        )
    result = classification.pretrain(pretraining, kind, from_checkpoint=resume)
    if is_first():
        zoo = next((name for name in DETECTORS if name.lower() == code.lower()), None)
        detector = f"--zoo {zoo}" if zoo else "--study NAME --trial N"
        export = f"python -m smnas_optuna.export {detector} --weights {shlex.quote(str(result.file))} --output found.py"
        print(f"{backbone}: top-1 {result.top1:.1f} %, top-5 {result.top5:.1f} %; {result.file}; {export}")


if __name__ == "__main__":
    run_command(pretrain, "pretrain")
