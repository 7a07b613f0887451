"""``python -m smnas_optuna.export``: write a trial's or a published detector as an MMDetection config or as ONNX."""

from pathlib import Path
from typing import Annotated, Literal

import optuna
import typer
from optuna.trial import TrialState

from smnas_optuna.command_line import DEFAULT_STORAGE, run_command
from smnas_optuna.data.datasets import CheckedDataset, DatasetSplit, open_dataset
from smnas_optuna.detector.zoo import DETECTORS, find_detector
from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.optimization import Optimization, combine, published_optimization
from smnas_optuna.recipe.recipe import Recipe
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.recipe.settings import BddDataset, CocoDataset, VocDataset
from smnas_optuna.search.search import Search
from smnas_optuna.search.studies import search_of
from smnas_optuna.study.retry import identity_of_trial
from smnas_optuna.study.study import load_study
from smnas_optuna.training.job import TrialIdentity
from smnas_optuna.training.trial_folder import check_record

_DEFAULT_DATA = "coco"
_COCO_ANNOTATIONS = "instances_train2017.json"
_EXPORTABLE = [name for name, published in DETECTORS.items() if published.architecture is not None]


def export(
    output: Annotated[Path, typer.Option(help="File to write.")],
    study: Annotated[str | None, typer.Option(help="Name of the study, such as coco/modular/C0.")] = None,
    trial: Annotated[int | None, typer.Option(min=0, help="Number of a finished trial of the study.")] = None,
    zoo: Annotated[
        str | None, typer.Option(help=f"A published detector instead of a trial: {', '.join(_EXPORTABLE)}.")
    ] = None,
    storage: Annotated[
        str, typer.Option(envvar="SMNAS_STORAGE", help="URL of the database with the study.")
    ] = DEFAULT_STORAGE,
    schedule: Annotated[
        Literal["1x", "2x", "3x"], typer.Option(help="MMDetection's schedule: 12, 24 or 36 epochs.")
    ] = "2x",
    data: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE", help="Recipe with the data set to train on; that of the study, or coco, if not given."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a key of that recipe.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Pre-trained weights of the backbone, a file or URL; imagenet for those of a published backbone; "
            "trained from scratch if not given."
        ),
    ] = None,
    kind: Annotated[
        Literal["config", "onnx"],
        typer.Option("--format", help="A config for training, or a trained detector as ONNX with a batch size of 1."),
    ] = "config",
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="With onnx: the trained weights, a trial's weights.pth or a checkpoint of a final training."),
    ] = None,
    portrait: Annotated[
        bool, typer.Option("--portrait", help="With onnx: for images that are taller than wide.")
    ] = False,
) -> None:
    """Write an MMDetection config for the final training of a detector, or a trained detector as ONNX.

    The config has the settings with which the paper trains its final models.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if (study is None) == (zoo is None) or (study is None) != (trial is None):
        raise UserError("expected --study NAME --trial N, or --zoo NAME")
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder; expected a file's name")
    if zoo is not None:
        architecture, detector, search, identity = _published(zoo), Detector(), None, None
    else:
        assert study is not None
        assert trial is not None
        architecture, detector, search, identity = _found(storage, study, trial)
    if kind == "onnx":
        if data or overrides or weights:
            raise UserError("--data, --set and --weights: are for --format config")
        if checkpoint is None:
            raise UserError("--format onnx: expected --checkpoint FILE, the trained weights")
        if not checkpoint.is_file():
            raise UserError(f"--checkpoint {checkpoint}: no such file; expected a detector's trained weights")
        _export_onnx(architecture, detector, identity, checkpoint, output, portrait=portrait)
        return
    if checkpoint or portrait:
        raise UserError("--checkpoint and --portrait: are for --format onnx")
    file = Path(weights) if weights is not None and weights != "imagenet" and "://" not in weights else None
    if file is not None and not file.is_file():
        raise UserError(f"--weights {file}: no such file; expected one, a URL, or imagenet")
    backbone = architecture.backbone
    published = backbone.imagenet_weights
    if weights == "imagenet" and published is None:
        raise UserError(f"--weights imagenet: {backbone} is no published backbone; expected a file, or none")
    recipe = _recipe_of_data(search, data, overrides)
    dataset = _dataset(recipe)
    from smnas_optuna.detector.weights import check_weights
    from smnas_optuna.training.final import final_config  # imports torch, so only after the arguments are checked

    if weights == "imagenet":
        weights = published
    elif file is not None:
        weights = backbone.checkpoint_of(file.resolve())
    # The flip probability of the trial's training, or for another data set, that of its recipe's first stage.
    training = search.settings.training if search is not None and data is None else recipe.structural.training
    config = final_config(
        architecture,
        dataset,
        detector,
        schedule=schedule,
        flip=training.flip,
        optimization=_optimization(search, architecture),
        weights=weights,
    )
    if file is not None and weights is not None:
        check_weights(f"--weights {file}", weights, config.model.backbone.to_dict(), otherwise="a URL, or imagenet")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(f"# {architecture}, exported by smnas_optuna\n{config.pretty_text}", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror}") from None
    print(f"{output}: {architecture}, {len(dataset.classes)} classes; python -m smnas_optuna.train {output}")


def _optimization(search: Search | None, architecture: Architecture) -> Optimization:
    """Return how weights are updated in the final training; empty settings if as in the paper.

    With SGD, a search from scratch or with few steps has other learning rates than the final training, which is the
    paper's.
    """
    if search is None:
        return published_optimization(part.OPTIMIZATION for part in architecture.parts)
    training = search.settings.training
    suited = training.suited_to(architecture)
    if training.lr is not None and suited.optimizer == "SGD":
        return Optimization()
    meant_for = suited.base_batch_size or training.batch_size
    return combine(suited).model_copy(update={"base_batch_size": meant_for})


def _export_onnx(
    architecture: Architecture,
    detector: Detector,
    identity: TrialIdentity | None,
    checkpoint: Path,
    output: Path,
    *,
    portrait: bool,
) -> None:
    from smnas_optuna.detector.onnx_model import export_onnx
    from smnas_optuna.training.checkpoint import load_trained
    from smnas_optuna.training.final import final_detector  # imports torch, so only after the arguments are checked

    place = f"--checkpoint {checkpoint}"
    trained = load_trained(place, checkpoint)
    check_record(place, trained["meta"], identity, str(architecture))
    if "architecture" not in trained["meta"]:  # the weights are from a final training, with its normalisation
        detector = final_detector(detector)
    agreement = export_onnx(architecture, detector, trained, output, portrait=portrait)
    print(
        f"{output}: {architecture}; in images of noise onnxruntime and torch find {agreement.boxes} boxes, of which "
        f"{agreement.others} differ; all others differ by {agreement.difference:.1g} at most"
    )


def _published(name: str) -> Architecture:
    try:
        published = find_detector(name)
    except ValueError as error:
        raise UserError(f"--zoo {error}") from None
    if published.architecture is None:
        raise UserError(f"--zoo {name}: MMDetection ships it, as configs/{published.config}")
    return published.architecture


def _found(storage: str, name: str, number: int) -> tuple[Architecture, Detector, Search, TrialIdentity]:
    study = load_study(storage, name)
    search = search_of(study)
    trials = study.get_trials(deepcopy=False)
    complete = [str(trial.number) for trial in trials if trial.state == TrialState.COMPLETE]
    if str(number) not in complete:
        raise UserError(
            f"--trial {number}: not a finished trial of {name!r}; those are {', '.join(complete) or 'none'}"
        )
    architecture = Architecture.parse(trials[number].user_attrs["architecture"])
    identity = identity_of_trial(study, trials[number])
    return architecture, search.settings.detector, search, identity


def _recipe_of_data(search: Search | None, data: str | None, overrides: list[str] | None) -> Recipe:
    """Return the recipe with the data set to train on."""
    if data is None and search is not None:
        if overrides:
            raise UserError("--set: changes the recipe that --data names; expected --data RECIPE with it")
        return search.recipe
    return load_recipe(data or _DEFAULT_DATA, overrides or ())


def _dataset(recipe: Recipe) -> CheckedDataset:
    dataset = recipe.dataset
    if isinstance(dataset, CocoDataset) and dataset.train.annotations.name == _COCO_ANNOTATIONS:
        train, val = (
            DatasetSplit(dataset.root / split.annotations, dataset.root / split.images)
            for split in (dataset.train, dataset.val)
        )
        if not train.annotations.exists():
            # COCO's classes are known, so the config can be written on a machine without the data.
            from smnas_optuna.training.final import coco_classes

            return CheckedDataset(train, val, coco_classes())
    if isinstance(dataset, VocDataset | BddDataset) and not dataset.root.is_dir():
        raise UserError(
            f"dataset.root: {dataset.root}: no such folder; the config names annotations that are converted from those "
            "in it, so export where the data are, with --data RECIPE --set dataset.root=FOLDER"
        )
    return open_dataset(dataset)


if __name__ == "__main__":
    run_command(export, "export")
