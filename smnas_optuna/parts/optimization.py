"""How the weights of a detector are updated in training, and what each family of parts was published with."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from smnas_optuna.parts.section import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing since Python 3.11

Optimizer = Literal["SGD", "AdamW"]


class Optimization(Section):
    """How weights are updated, with a cosine schedule of the learning rate.

    A key that is null is decided elsewhere: by the other parts of an architecture, or by a recipe.

    Args:
        optimizer: ``SGD``; or ``AdamW``, which does not decay biases and the weights of normalisation layers.
        lr: Highest learning rate.
        base_batch_size: Number of images per step that ``lr`` is meant for. For another number it is scaled linearly
            with SGD, and by the square root with AdamW. Null if ``lr`` is meant for the batch size that is used.
        final_lr: Learning rate at the end of the schedule; null for a hundredth of the highest.
        momentum: Momentum of SGD, from 0 to below 1.
        weight_decay: Weight decay.
        backbone_lr: Learning rate of the backbone, as a multiple of ``lr``.
        warmup_iterations: Steps over which the learning rate rises linearly at the start; a fifth of the training at
            most.
        clip_gradients: Largest L2 norm of the gradient.
        average_weights: Keep a moving average of the weights, and evaluate and save this instead of the last weights.
    """

    optimizer: Optimizer | None = None
    lr: PositiveFloat | None = None
    base_batch_size: PositiveInt | None = None
    final_lr: NonNegativeFloat | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    weight_decay: NonNegativeFloat | None = None
    backbone_lr: PositiveFloat | None = None
    warmup_iterations: NonNegativeInt | None = None
    clip_gradients: PositiveFloat | None = None
    average_weights: bool | None = None

    @model_validator(mode="after")
    def _optimizer_has_a_learning_rate(self) -> "Self":
        if self.optimizer is not None and self.lr is None:
            raise ValueError(f"optimizer: found {self.optimizer} without lr; learning rates of another do not fit it")
        return self


# MMDetection's for Faster R-CNN, which all families have that say nothing else.
_DEFAULT = Optimization(
    optimizer="SGD",
    lr=0.02,
    base_batch_size=16,
    momentum=0.9,
    weight_decay=0.0001,
    backbone_lr=1.0,
    warmup_iterations=500,
    average_weights=False,
)


def published_optimization(optimizations: Iterable[Optimization]) -> Optimization:
    """Return how a detector is trained whose parts were published with different settings.

    If one of them was published with AdamW, settings for SGD are left out: transformers do not learn with SGD, while
    parts published with SGD learn with AdamW as well. Of two values of a key, the later one is used.

    Args:
        optimizations: The settings of the parts, in the order backbone, neck, RPN, head.
    """
    published = [each for each in optimizations if each != Optimization()]
    adaptive = [each for each in published if each.optimizer == "AdamW"]
    return combine(_DEFAULT, *(adaptive or published))


def combine(*layers: Optimization) -> Optimization:
    """Return settings in which each key has its value in the last of several settings where it is not null."""
    return Optimization(**combined_keys(*layers))


def combined_keys(*layers: Optimization) -> dict[str, Any]:
    """Return the keys and values of :func:`combine`."""
    keys: dict[str, Any] = dict.fromkeys(Optimization.model_fields)
    for layer in layers:
        given = {key: value for key in keys if (value := getattr(layer, key)) is not None}
        if layer.lr is not None:
            # A learning rate is meant for its own batch size.
            given["base_batch_size"] = layer.base_batch_size
        keys |= given
    return keys
