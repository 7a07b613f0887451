"""The rules by which a plan is made: small functions, each of which decides one thing and says why.

A rule sees properties of the data, the machine and the budget, and what rules before it have decided.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smnas_optuna.parts.architecture import InputSize
from smnas_optuna.planning.facts import DataFacts, Speed
from smnas_optuna.study.budget import duration_text
from smnas_optuna.training.job import Machine

# Sides of boxes in pixels: below the first hardly a detector finds an object, and above the second all find it.
_SMALLEST_SIDE, _COMFORTABLE_SIDE = 16, 24
# Longest input sizes by kind of device, and the shortest of all.
_LONGEST_INPUT = {"cpu": 640, "cuda": 1600}
_SHORTEST_INPUT = 128
_INPUT_SIZES = 4
# From this longer side on, detectors profit from levels that are a 32nd of the input.
_LARGE_INPUT = 512

# Backbones to choose from: of each device the fastest, of different kinds.
_BACKBONES = {
    "cpu": ("timm:tf_efficientnet_lite0", "timm:mobilenetv4_conv_small", "timm:hgnetv2_b0", "ResNet18"),
    "cuda": (
        *("ResNet18", "ResNet50", "CSPNeXt-s", "timm:mobilenetv4_conv_medium", "timm:hgnetv2_b2"),
        *("timm:regnety_008", "timm:convnext_tiny"),
    ),
}

# Trials that a sampler needs to learn something, and how many more each hour of the budget gives.
_FEWEST_TRIALS, _TRIALS_PER_HOUR, _MOST_TRIALS = 12, 3, 80
# Fewest trials for which large input sizes are given up.
_LEAST_TRIALS = 5
# Training steps of a trial. With pre-trained weights a detector ranks as after a long training from the first on; the
# second is that of MMDetection's shortest schedule for data of COCO's size.
_FEWEST_STEPS, _MOST_STEPS = 200, 20_000
# Times that each image may be seen: more teach a detector little, even if the data are few.
_MOST_EPOCHS = 36
# From so many passes on, variations of images do more good than harm.
_MANY_EPOCHS = 16
# Training with so many steps is long enough for what parts were published with.
_LONG_TRAINING = 3_000
# Share of a trial that its validation may take, and fewest images that tell two detectors apart.
_VALIDATION_SHARE, _FEWEST_VALIDATION_IMAGES = 0.25, 200
# Part of the budget that is kept for what follows the search, and most passes of it over few images.
_FINAL_SHARE, _MOST_FINAL_EPOCHS = 0.3, 300
# Other seeds that recommended detectors are trained with, which give a first idea of how much accuracy changes.
_REPEATS = 2
# A detector without gradients takes about this share of a training step.
_EVALUATION_SHARE = 0.35
# Trials that are shorter than this are timed on fewer images.
_SHORT_TRIAL_SECONDS = 300.0
# Seconds of a trial for its start, timing and pictures.
_OVERHEAD_SECONDS = 8.0


@dataclass(frozen=True)
class Decision:
    """A decision of a plan.

    Args:
        key: The recipe's key, such as ``structural.space.input_sizes``.
        value: Its value, as in YAML.
        reason: One sentence.
    """

    key: str
    value: Any
    reason: str


def input_sizes(data: DataFacts, kind: str) -> Decision:
    """Choose input sizes between those at which most objects are large enough, and the size of the images.

    Args:
        data: Properties of the data.
        kind: Kind of device.
    """
    limit = _LONGEST_INPUT[kind]
    # Images of tiny objects are enlarged a little, which helps detectors whose finest level has a stride of 8.
    needed = data.long_side * _SMALLEST_SIDE / data.small_side
    longest = min(max(data.long_side, min(needed, 1.5 * data.long_side)), limit)
    comfortable = data.long_side * _COMFORTABLE_SIDE / data.median_side
    shortest = min(max(comfortable, _SHORTEST_INPUT), longest / 1.6)
    ratio = (longest / shortest) ** (1 / (_INPUT_SIZES - 1))
    sides = dict.fromkeys(_to_32(shortest * ratio**step) for step in range(_INPUT_SIZES))
    note = f"; larger ones take too long on {_device(kind)}" if longest == limit < data.long_side else ""
    return _decided_sizes(data, [_sized(data, side) for side in sides], note)


def _decided_sizes(data: DataFacts, sizes: list[str], note: str) -> Decision:
    scale = _long_side(sizes[-1]) / data.long_side
    reason = (
        f"images are {data.width}x{data.height}; at the largest size half of the boxes are over "
        f"{data.median_side * scale:.0f} pixels and a tenth are below {data.small_side * scale:.0f}"
    )
    return Decision("structural.space.input_sizes", sizes, reason + note)


def _long_side(size: str) -> int:
    parsed = InputSize.parse(size)
    return max(parsed.width, parsed.height)


def _to_32(side: float) -> int:
    return max(32, 32 * round(side / 32))


def _sized(data: DataFacts, side: int) -> str:
    """Return the input size with a longer side, in the shape of the images."""
    other = round(side * min(data.width, data.height) / data.long_side)
    return str(InputSize(side, other) if data.width >= data.height else InputSize(other, side))


def _device(kind: str) -> str:
    return "a CPU" if kind == "cpu" else "a GPU"


def backbones(kind: str, weights: Mapping[str, str]) -> Decision:
    """Choose backbones that are fast on the device, and that can start from pre-trained weights here.

    Args:
        kind: Kind of device.
        weights: For each backbone what detectors with it would start from; those without weights are absent.
    """
    candidates = _BACKBONES[kind]
    available = [name for name in candidates if name in weights]
    if not available:
        chosen = [name for name in candidates if name.startswith("ResNet")]
        return Decision(
            "structural.space.backbones",
            chosen,
            "no pre-trained weights can be had here, so detectors are trained from scratch, which needs far more "
            "images and time; --weights-dir names a folder with weights",
        )
    left_out = [name for name in candidates if name not in weights]
    reason = f"these are fast on {_device(kind)} and start from pre-trained weights"
    if left_out:
        reason += f"; there are none here for {', '.join(left_out)}"
    return Decision("structural.space.backbones", available, reason)


def candidates(kind: str) -> tuple[str, ...]:
    """Return the backbones that a plan may choose from, for a kind of device."""
    return _BACKBONES[kind]


def levels(sizes: Sequence[str]) -> tuple[Decision, Decision]:
    """Choose the levels that necks take and give."""
    largest = max(map(_long_side, sizes))
    if largest < _LARGE_INPUT:
        reason = f"inputs of up to {largest} pixels leave too little on coarser levels"
        inputs, outputs = ["P1-P3", "P1-P4", "P2-P3", "P2-P4"], ["P3", "P4", "P5"]
    else:
        reason = f"inputs of up to {largest} pixels show objects that only coarse levels see as a whole"
        inputs, outputs = ["P1-P4", "P2-P4"], ["P4", "P5"]
    return (
        Decision("structural.space.fpn_inputs", inputs, reason),
        Decision("structural.space.fpn_last_outputs", outputs, reason),
    )


def fpn_channels(machine: Machine) -> Decision:
    """Choose the width of necks and heads."""
    if machine.kind == "cpu":
        return Decision("structural.space.fpn_channels", 64, "on a CPU wider necks and heads cost more than they give")
    return Decision("structural.space.fpn_channels", 128, "half of the published width, which costs a GPU little")


def heads(trials: int) -> Decision:
    """Choose heads of one and two stages."""
    if trials < 2 * _FEWEST_TRIALS:
        return Decision(
            "structural.space.heads",
            ["ATSS", "2FC", "Cascade(n=3)"],
            f"in {trials} trials only few heads can be compared; these learn fastest from few images",
        )
    return Decision(
        "structural.space.heads",
        ["RetinaNet", "ATSS", "FCOS", "GFL", "RTMDet", "2FC", "Cascade(n=2)", "Cascade(n=3)"],
        f"{trials} trials are enough to compare heads of one and of two stages",
    )


def seeds(sizes: Sequence[str], inputs: Sequence[str], names: Sequence[str], channels: int) -> Decision:
    """Choose the detectors to begin with: a fast one, an accurate one, and one between."""
    small, middle, large = sizes[0], sizes[len(sizes) // 2 - (len(sizes) > 2)], sizes[-1]
    fine, coarse = inputs[-3] if len(inputs) > 3 else inputs[0], inputs[-1]
    texts = [
        f"{middle} {names[min(1, len(names) - 1)]} FPN({fine},c={channels}) RPN 2FC",
        f"{large} {names[0]} FPN({fine},c={channels}) RPN Cascade(n=3)",
        f"{small} {names[0]} FPN({coarse},c={channels}) ATSS",
    ]
    return Decision(
        "structural.seeds",
        list(dict.fromkeys(texts)),
        "published detectors from fast to accurate, with which the search begins and is compared",
    )


def batch_size(data: DataFacts, machine: Machine) -> Decision:
    """Choose the images per training step."""
    if machine.kind == "cpu":
        return Decision("structural.training.batch_size", 4, "on a CPU more images per step take as much longer")
    size = 16 if machine.memory_gb >= 12 and data.train_images >= 1_000 else 8
    return Decision(
        "structural.training.batch_size", size, f"fills a GPU of {machine.memory_gb:.0f} GiB without too few steps"
    )


def wanted_trials(budget: float) -> int:
    """Return how many trials a search of so many seconds should have."""
    return min(_MOST_TRIALS, round(_FEWEST_TRIALS + _TRIALS_PER_HOUR * budget / 3600))


@dataclass(frozen=True)
class Schedule:
    """How long trials train, and how many there are.

    Args:
        steps: Training steps of a trial.
        train_images: Training images of a trial, of which each is seen ``epochs`` times.
        val_images: Validation images of a trial.
        epochs: Passes over the training images.
        seconds: Seconds that a trial is expected to take.
        trials: Trials that are expected within the budget.
    """

    steps: int
    train_images: int
    val_images: int
    epochs: int
    seconds: float
    trials: int


def schedule(
    data: DataFacts, machine: Machine, speed: Speed, sizes: Sequence[str], batch: int, budget: float
) -> Schedule:
    """Divide the budget among trials: as many as a sampler needs, each as long as that allows.

    Args:
        data: Properties of the data.
        machine: Properties of the machine; each GPU runs trials of its own.
        speed: Measured speed.
        sizes: Input sizes; those of trials are their mean.
        batch: Images per step.
        budget: Seconds of the search.
    """
    each = speed.per_image(_mean_pixels(sizes))
    time = budget * max(1, machine.gpus)
    wanted = wanted_trials(time)
    # What is left of a trial after its start, timing and validation is for its steps.
    training = (time / wanted - _OVERHEAD_SECONDS) * (1 - _VALIDATION_SHARE)
    steps = min(
        max(round(training / (each * batch)), _FEWEST_STEPS),
        _MOST_STEPS,
        max(_FEWEST_STEPS, _MOST_EPOCHS * data.train_images // batch),
    )
    seen = steps * batch
    epochs = max(1, round(seen / data.train_images))
    train_images = min(data.train_images, seen)
    evaluation = each * _EVALUATION_SHARE
    affordable = round(seen * each * _VALIDATION_SHARE / (1 - _VALIDATION_SHARE) / evaluation)
    val_images = min(data.val_images, max(_FEWEST_VALIDATION_IMAGES, affordable))
    seconds = epochs * train_images * each + val_images * evaluation + _OVERHEAD_SECONDS
    return Schedule(
        epochs * math.ceil(train_images / batch), train_images, val_images, epochs, seconds, int(time / seconds)
    )


def _mean_pixels(sizes: Sequence[str]) -> float:
    areas = [(size := InputSize.parse(text)).width * size.height for text in sizes]
    return sum(areas) / len(areas)


def affordable_sizes(
    data: DataFacts, machine: Machine, speed: Speed, sizes: Decision, batch: int, budget: float
) -> Decision:
    """Leave out the largest input sizes as long as too few trials would fit into the budget."""
    kept = list(sizes.value)
    while len(kept) > 1 and schedule(data, machine, speed, kept, batch, budget).trials < _LEAST_TRIALS:
        kept.pop()
    if len(kept) == len(sizes.value):
        return sizes
    left_out = ", ".join(sizes.value[len(kept) :])
    return _decided_sizes(
        data,
        kept,
        f"; with {left_out} too, fewer than {_LEAST_TRIALS} trials would fit into {duration_text(budget)}",
    )


def trials(plan: Schedule, budget: float) -> Decision:
    """Say how many trials are expected."""
    return Decision(
        "structural.trials",
        max(1, plan.trials),
        f"one takes about {duration_text(plan.seconds)}, so about {plan.trials} fit into {duration_text(budget)}",
    )


def epochs(plan: Schedule) -> Decision:
    """Say how often each training image is seen."""
    return Decision(
        "structural.training.epochs",
        plan.epochs,
        f"{plan.steps:,} steps of a trial, counted in steps so that few images are not trained for too short",
    )


def final_share() -> Decision:
    """Choose the part of the budget that is kept for what follows the search."""
    return Decision(
        "final.share",
        _FINAL_SHARE,
        "kept for the recommended detector, which is trained longer than in the search, from the search's weights",
    )


def final_epochs(data: DataFacts, plan: Schedule, speed: Speed, sizes: Sequence[str], seconds: float) -> Decision:
    """Say how often the recommended detector sees each training image after the search.

    Args:
        data: Properties of the data.
        plan: How long trials train.
        speed: Measured speed.
        sizes: Input sizes.
        seconds: Seconds that are kept for it.
    """
    epochs = max(plan.epochs, min(_MOST_FINAL_EPOCHS, _possible_epochs(data, speed, sizes[0], seconds)))
    return Decision(
        "final.epochs",
        epochs,
        f"at most: so many fit into {duration_text(seconds)} at the smallest input size; what is left of the budget "
        "decides",
    )


def _possible_epochs(data: DataFacts, speed: Speed, size: str, seconds: float) -> int:
    return int(seconds / (speed.per_image(_mean_pixels([size])) * data.train_images))


def repeats() -> Decision:
    """Choose how many other seeds the recommended detectors are trained with."""
    return Decision(
        "final.repeats", _REPEATS, "show how certain the order of the recommended detectors is, if the budget allows"
    )


def fewer_images(data: DataFacts, plan: Schedule) -> list[Decision]:
    """Leave out images of large data sets, of which a trial cannot see all."""
    decisions = []
    if plan.train_images < data.train_images:
        decisions.append(
            Decision(
                "dataset.train_images",
                plan.train_images,
                f"a trial has time for so many of the {data.train_images:,} training images, the same in all trials",
            )
        )
    if plan.val_images < data.val_images:
        decisions.append(
            Decision(
                "dataset.val_images",
                plan.val_images,
                f"all {data.val_images:,} would take most of a trial; so many tell detectors apart",
            )
        )
    return decisions


def optimizer(plan: Schedule) -> list[Decision]:
    """Choose how weights are updated."""
    if plan.steps < _LONG_TRAINING:
        reason = f"in {plan.steps:,} steps AdamW learns more than with the settings that parts were published with"
        return [
            Decision("structural.training.optimizer", "AdamW", reason),
            Decision("structural.training.lr", 0.001, "the best of those tried with short trainings on photographs"),
            Decision("structural.training.warmup_iterations", min(50, plan.steps // 5), "a short one, for few steps"),
            Decision("structural.training.clip_gradients", 35, "keeps single steps from destroying what was learned"),
        ]
    return []


def normalization(*, pretrained: bool) -> list[Decision]:
    """Choose the layers that normalise features."""
    if pretrained:
        return []
    reason = "trained from scratch with few images per step, batch normalisation learns little"
    return [
        Decision("structural.detector.norm", "GN", reason),
        Decision("structural.detector.weight_standardization", True, "goes with group normalisation"),
    ]


def augmentation(plan: Schedule) -> list[Decision]:
    """Choose how training images are varied."""
    flip = Decision("structural.training.flip", 0.5, "objects may be seen from both sides; set 0 for text or signs")
    return [flip, *_variation("structural.training", plan.epochs)]


def final_augmentation(
    data: DataFacts, plan: Schedule, speed: Speed, sizes: Sequence[str], seconds: float
) -> list[Decision]:
    """Choose how training images are varied after the search, where that differs; see :func:`final_epochs`."""
    # So many are certain, also for a slow detector with the largest input.
    epochs = min(_MOST_FINAL_EPOCHS, _possible_epochs(data, speed, sizes[-1], seconds) // 2)
    return [] if _variation("", plan.epochs) else _variation("final", epochs)


def _variation(section: str, epochs: int) -> list[Decision]:
    if epochs < _MANY_EPOCHS:
        return []
    reason = f"each image is seen {epochs} times or more, so variations keep detectors from learning them by heart"
    return [
        Decision(f"{section}.scale_jitter", [0.8, 1.25], reason),
        Decision(f"{section}.photometric", True, reason),
    ]


def proposals(data: DataFacts, machine: Machine) -> list[Decision]:
    """Choose how many regions two-stage detectors look at."""
    number = 200 if data.crowding <= 50 else 500 if data.crowding <= 150 else 1000
    reason = f"a hundredth of the images have more than {data.crowding} objects"
    sampled, width = (64, 256) if machine.kind == "cpu" else (256, 1024)
    of_device = f"training and inference take less time on {_device(machine.kind)}"
    return [
        Decision("structural.detector.proposals", number, reason),
        Decision("structural.detector.roi_samples", sampled, of_device),
        Decision("structural.detector.fc_channels", width, of_device),
    ]


def anchor_scale(data: DataFacts, sizes: Sequence[str]) -> Decision:
    """Choose the size of anchors, in strides."""
    size = sizes[len(sizes) // 2]
    side = data.median_side * _long_side(size) / data.long_side
    scale = 4 if side < 64 else 8
    return Decision(
        "structural.detector.anchor_scale", scale, f"half of the boxes are below {side:.0f} pixels at {size}"
    )


def loader_workers(machine: Machine) -> Decision:
    """Choose the processes that load images."""
    if machine.kind == "cpu":
        return Decision("structural.training.loader_workers", 0, "on a CPU they would take cores from training")
    number = min(8, max(2, machine.cores // max(1, machine.gpus) - 1))
    return Decision("structural.training.loader_workers", number, f"{machine.cores} cores for {machine.gpus} GPUs")


def timing(plan: Schedule) -> Decision:
    """Choose how many images are timed."""
    if plan.seconds < _SHORT_TRIAL_SECONDS:
        reason = f"more would take too large a part of a trial of {duration_text(plan.seconds)}"
        return Decision("device.timing.images", 20, reason)
    return Decision("device.timing.images", 40, "enough for a median that does not depend on single images")


def mixed_precision(machine: Machine) -> list[Decision]:
    """Choose the precision of training."""
    if machine.kind == "cpu":
        return []
    return [Decision("structural.training.amp", True, "GPUs train about twice as fast in mixed precision")]
