"""Recipe: one YAML file that describes one search, validated before anything else happens."""

import difflib
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from smnas_optuna.architecture import Architecture
from smnas_optuna.errors import UserError
from smnas_optuna.search_space.structural import StructuralSpace

Objective = Literal["map", "map_50", "map_75", "latency_ms", "flops", "params"]
SamplerName = Literal["nsga2", "tpe", "random"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Split(_Section):
    """One part of a data set.

    Args:
        annotations: COCO json file, relative to the data set's root.
        images: Folder that the json's file names are relative to, itself relative to the root.
    """

    annotations: Path
    images: Path


class CocoDataset(_Section):
    """Images with boxes in COCO's json format; the class names are the json's categories."""

    kind: Literal["coco"] = "coco"
    root: Path = Path()
    train: Split
    val: Split


class DigitsDataset(_Section):
    """Scenes composed of scikit-learn's handwritten digits, made on first use; see ``evaluation/digits.py``.

    Args:
        classes: The first so many digits, counted from 0.
        train_images: Scenes to train on.
        val_images: Scenes to validate on, composed of other digits.
        width: Scene width in pixels.
        height: Scene height in pixels.
    """

    kind: Literal["digits"]
    classes: Annotated[int, Field(ge=1, le=10)] = 10
    train_images: PositiveInt = 160
    val_images: PositiveInt = 60
    width: Annotated[int, Field(ge=48)] = 160
    height: Annotated[int, Field(ge=48)] = 120


class Timing(_Section):
    """How inference time is measured.

    Args:
        images: Validation images timed, one at a time.
        warmup: Images run before, untimed.
        rounds: Times that the timed images are gone through; the spread is that of the rounds' medians.
    """

    images: PositiveInt = 100
    warmup: PositiveInt = 20
    rounds: Annotated[int, Field(ge=2)] = 5


class Device(_Section):
    """The target device.

    Args:
        kind: ``auto`` is a CUDA GPU where there is one, else the CPU.
        gpus_per_trial: GPUs that train one architecture together.
        cpu_threads: Threads that torch computes with; null for its own choice, one per core. Small networks train
            fastest with 1.
        timing: How inference time is measured there.
    """

    kind: Literal["auto", "cpu", "cuda"] = "auto"
    gpus_per_trial: PositiveInt = 1
    cpu_threads: PositiveInt | None = None
    timing: Timing = Timing()


class Detector(_Section):
    """What all detectors of a search have in common; the defaults are MMDetection's.

    Args:
        norm: Normalisation of the backbone; group normalisation also goes into neck and RetinaNet head.
        weight_standardization: Standardise the weights of the convolutions that a normalisation follows.
        anchor_scale: Side of an RPN's square anchor in strides of its level.
        proposals: Most proposals per image that reach the RCNN head in testing; half as many with guided anchoring,
            at most 300.
        roi_samples: Proposals per image that an RCNN head learns from.
        fc_channels: Width of the RCNN head's two fully connected layers.
        retina_convs: Convolutions in each branch of the RetinaNet head.
        max_detections: Detections per image.
    """

    norm: Literal["BN", "GN"] = "BN"
    weight_standardization: bool = False
    anchor_scale: PositiveFloat = 8
    proposals: PositiveInt = 1000
    roi_samples: PositiveInt = 512
    fc_channels: PositiveInt = 1024
    retina_convs: PositiveInt = 4
    max_detections: PositiveInt = 100


class Training(_Section):
    """How each architecture is trained: SGD with a cosine schedule.

    Args:
        epochs: Passes over the training split.
        batch_size: Images per step, over all GPUs of a trial.
        lr: Highest learning rate.
        final_lr: Learning rate that the cosine ends at.
        momentum: Of SGD.
        weight_decay: Of SGD.
        warmup_iterations: Steps over which the learning rate rises linearly.
        clip_gradients: Largest L2 norm of the gradient; null for none.
        flip: Probability of a horizontal flip.
        weights: Where the backbones start: ``imagenet``, ``none`` (from scratch), or a file per backbone.
        amp: Automatic mixed precision in training; CUDA only.
        loader_workers: Processes that load images, per GPU.
        time_limit_minutes: Longest time for one trial; null for none.
        seed: Of initialisation and shuffling.
    """

    epochs: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    final_lr: NonNegativeFloat = 0.0001
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 0.0001
    warmup_iterations: NonNegativeInt = 500
    clip_gradients: PositiveFloat | None = None
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    weights: Literal["imagenet", "none"] | dict[str, Path] = "imagenet"
    amp: bool = False
    loader_workers: NonNegativeInt = 2
    time_limit_minutes: PositiveFloat | None = None
    seed: NonNegativeInt = 0


def _distinct_objectives(objectives: tuple[Objective, ...]) -> tuple[Objective, ...]:
    if len(set(objectives)) != len(objectives):
        raise ValueError("an objective is listed more than once")
    return objectives


class Structural(_Section):
    """Stage one.

    Args:
        trials: Architectures to evaluate in total.
        sampler: Which Optuna sampler proposes them.
        objectives: mAPs are maximised, costs minimised.
        space: What may be combined.
        seeds: Architectures to evaluate first, in canonical text.
        detector: What all detectors have in common.
        training: How each is trained.
    """

    trials: PositiveInt
    sampler: SamplerName = "nsga2"
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1), AfterValidator(_distinct_objectives)] = (
        "map",
        "latency_ms",
    )
    space: StructuralSpace = StructuralSpace()
    seeds: tuple[str, ...] = ()
    detector: Detector = Detector()
    training: Training

    @model_validator(mode="after")
    def _seeds_lie_in_the_space(self) -> "Structural":
        for text in self.seeds:
            try:
                self.space.params(Architecture.parse(text))
            except ValueError as error:
                raise ValueError(f"seed {text!r} does not fit the space: {error}") from None
        return self

    @model_validator(mode="after")
    def _weights_for_every_backbone(self) -> "Structural":
        weights = self.training.weights
        if isinstance(weights, dict) and set(weights) != set(self.space.backbones):
            raise ValueError(
                f"training.weights names {', '.join(sorted(weights))}; expected a file for each of "
                f"{', '.join(self.space.backbones)}"
            )
        if weights == "imagenet" and self.space.base_channels != 64:
            raise ValueError("training.weights: imagenet weights fit base_channels 64 only; expected none")
        return self


# What may change between two runs that share a study: it decides how far and how the search goes on, not what a trial's
# values mean.
_FREE_KEYS = (
    "structural.trials",
    "structural.sampler",
    "structural.seeds",
    "structural.training.loader_workers",
    "structural.training.time_limit_minutes",
)


class Recipe(_Section):
    """One search.

    Args:
        name: Studies are called ``<name>/structural`` and so on.
        dataset: What to train and validate on.
        device: What to measure time on.
        structural: Stage one.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    dataset: Annotated[CocoDataset | DigitsDataset, Field(discriminator="kind")]
    device: Device = Device()
    structural: Structural

    def differing_keys(self, recorded: dict[str, Any]) -> list[str]:
        """Return the key paths at which this recipe and a study's recorded one mean different trials."""
        mine, theirs = _flatten(self.model_dump(mode="json")), _flatten(recorded)
        absent = object()
        return [
            key
            for key in dict.fromkeys([*mine, *theirs])
            if mine.get(key, absent) != theirs.get(key, absent) and key not in _FREE_KEYS
        ]


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("smnas_optuna") / "studies"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        recipe: A path to a YAML file, or the name of a shipped recipe.
        overrides: ``key.path=value`` each, the value in YAML; they win over the file.

    Raises:
        UserError: With file, line or key path, what was found and what was expected.
    """
    place, text = _read(recipe)
    try:
        tree = yaml.compose(text, Loader=_Loader)
        content = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise UserError(f"{place}:{mark.line + 1 if mark else 1}: not valid YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        raise UserError(f"{place}:{before.count(chr(10)) + 1}: not valid YAML: {error.reason}") from None
    if not isinstance(content, dict):
        raise UserError(f"{place}: expected keys such as name, dataset and structural, found {type(content).__name__}")
    overridden = {_override(content, override) for override in overrides}
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        # A misspelt key comes first: that the right one is missing only follows from it.
        first, *more = sorted(error.errors(include_url=False), key=lambda error: error["type"] != "extra_forbidden")
        path = _path_of(first, content)
        key = ".".join(path)
        given = any(f"{key}.".startswith(f"{override}.") for override in overridden)
        line = None if given else _line_of(tree, path)
        where = f"{place}:{line}" if line else place
        rest = f" (and {len(more)} more)" if more else ""
        raise UserError(f"{where}: {key + ': ' if key else ''}{_explain(first)}{rest}") from None


def _read(recipe: str) -> tuple[str, str]:
    path = Path(recipe)
    try:
        if recipe in shipped_recipes():
            return recipe, (resources.files("smnas_optuna") / "studies" / f"{recipe}.yaml").read_text(encoding="utf-8")
        return recipe, path.read_text(encoding="utf-8")
    except FileNotFoundError:
        shipped = ", ".join(shipped_recipes())
        raise UserError(f"recipe {recipe!r}: no such file, and the shipped recipes are {shipped}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {recipe!r}: cannot be read: {error}") from None


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, where a key given twice in one mapping is an error; PyYAML lets the last one win."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    raise yaml.MarkedYAMLError(problem=f"key {key.value!r} given twice", problem_mark=key.start_mark)
                keys.add((key.tag, key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # such as the date 2024-13-45
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None


def _override(content: dict[str, Any], override: str) -> str:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"--set {override!r}: expected key.path=value")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise UserError(f"--set {override!r}: the value is not valid YAML") from None
    *parents, last = key.split(".")
    section = content
    for parent in parents:
        child = {} if section.get(parent) is None else section[parent]
        if not isinstance(child, dict):
            raise UserError(f"--set {override!r}: {parent} holds a value, not keys")
        section[parent] = dict(child)  # a copy: by an alias in the YAML another key may hold the same mapping
        section = section[parent]
    section[last] = value
    return key


def _path_of(error: ErrorDetails, content: Any) -> list[str]:
    """Return the keys to an error in ``content``, without the names that pydantic gives to members of unions."""
    path: list[str] = []
    node = content
    for part in error["loc"]:
        children = dict(enumerate(node)) if isinstance(node, list) else node
        if isinstance(children, dict) and part in children:
            node = children[part]
            path.append(str(part))
    return [*path, str(error["loc"][-1])] if error["type"] == "missing" else path


def _line_of(node: yaml.Node | None, path: list[str]) -> int | None:
    """Return the line, from 1, of the deepest part of ``path`` that the file has."""
    line: int | None = None
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None:
                return line
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
            line = node.start_mark.line + 1
    return line


def _explain(error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        return f"unknown key; {f'did you mean {close[0]}?' if close else 'expected one of ' + ', '.join(known)}"
    if error["type"] == "missing":
        return "this key is missing"
    if error["type"].startswith("union_tag"):
        kinds = Recipe.model_json_schema()["properties"]["dataset"]["discriminator"]["mapping"]
        kind = f"kind {error['ctx']['tag']!r}" if "tag" in error["ctx"] else "no kind"
        return f"found {kind}, expected one of {', '.join(kinds)}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    found = error["input"]
    expected = re.sub("^Input should be ", "expected ", error["msg"])
    return expected if isinstance(found, dict) else f"found {found!r}, {expected}"


def _known_keys(path: Sequence[int | str]) -> list[str]:
    """Return the keys of the recipe's section at ``path``."""
    schema = Recipe.model_json_schema()
    node: dict[str, Any] = schema
    for part in path:
        if "oneOf" in node:
            reference = node["discriminator"]["mapping"][part]
        else:
            child = node["properties"][str(part)]
            if "oneOf" in child:
                node = child
                continue
            reference = child["$ref"]
        node = schema["$defs"][reference.removeprefix("#/$defs/")]
    return list(node["properties"])


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
