"""timm's models as backbones, registered in MMDetection's registry.

Configs that use them list ``smnas_optuna.detector.layers``, which imports this module, in ``custom_imports``.
"""

import sys
from collections.abc import Sequence
from typing import Any

import timm
import timm.models
import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader
from timm.layers.format import Format
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from smnas_optuna.detector.backbone import fix_statistics
from smnas_optuna.detector.pretrained import UnfitWeights

# Options with which models accept images of other sizes than the one that they were trained with, by their names in
# timm; the last one is for all models that accept any size.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"strict_img_size": False}, {"dynamic_img_size": True}, {})


@MODELS.register_module()
class TimmBackbone(BaseModule):  # type: ignore[misc]  # mmengine is untyped
    """A timm model that returns feature maps, without the layers after the last of them.

    Args:
        model: Name of the model in timm.
        out_indices: Indices, ascending, of the feature maps that are returned, as in timm's ``out_indices``.
        out_channels: Channels of each returned feature map.
        sync_norm: Compute the statistics of batch normalisation over all GPUs of a training.
        norm_eval: Keep the statistics of batch normalisation fixed in training.
        init_cfg: Config of the initialisation; None for that of timm. :func:`load_pretrained` says what a checkpoint
            can be.

    Raises:
        ValueError: The installed timm's model has other channels.
    """

    def __init__(
        self,
        model: str,
        out_indices: Sequence[int],
        out_channels: Sequence[int],
        sync_norm: bool = False,
        norm_eval: bool = False,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        created = create_features(model, tuple(out_indices))
        found = list(created.feature_info.channels())
        if found != list(out_channels):
            raise ValueError(f"{model}: timm {timm.__version__} has {found} channels, expected {list(out_channels)}")
        _remove_unused_blocks(created)
        self.model = convert_sync_batchnorm(created) if sync_norm else created  # type: ignore[no-untyped-call]
        self.norm_eval = norm_eval
        self._channels_last = getattr(created, "output_fmt", Format.NCHW) == Format.NHWC

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return feature maps.

        Args:
            images: ``n x 3 x h x w``.

        Returns:
            A tensor for each index in ``out_indices``, ``n x channels x h / stride x w / stride``.
        """
        levels = self.model(images)
        if self._channels_last:
            levels = [level.permute(0, 3, 1, 2).contiguous() for level in levels]
        return tuple(levels)

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Set the training mode; with ``norm_eval`` all batch statistics do not change in it."""
        super().train(mode)
        if mode and self.norm_eval:
            fix_statistics(self)
        return self


def create_features(model: str, out_indices: tuple[int, ...] | None = None, **more: Any) -> Any:
    """Create a timm model that returns feature maps of images of any size.

    Args:
        model: Name of the model.
        out_indices: Indices of the feature maps that it returns; None for all.
        more: Further arguments of ``timm.create_model``; by default weights are random.
    """
    if out_indices is not None:
        more["out_indices"] = out_indices
    for options in _ANY_SIZE:
        try:
            return timm.create_model(model, features_only=True, **more, **options)
        except TypeError as error:
            # Models do not know the options of others.
            if not any(option in str(error) for option in options):
                raise
    raise AssertionError("the last options are none")


def _remove_unused_blocks(model: Any) -> None:
    """Remove the stages after the last feature map, which timm itself keeps, and computes, for some models."""
    stages = getattr(model, "_stage_out_idx", None)
    if stages and getattr(model, "feature_hooks", None) is None:
        model.blocks = nn.Sequential(*list(model.blocks)[: max(stages)])


@CheckpointLoader.register_scheme(prefixes="timm://")  # type: ignore[untyped-decorator]  # mmengine is untyped
def load_pretrained(uri: str, map_location: Any = "cpu") -> dict[str, Tensor]:
    """Load pre-trained weights of a timm model, for a :class:`TimmBackbone` with any of its feature maps.

    Args:
        uri: ``timm://NAME`` for the weights that timm has for the model, or ``timm://NAME:FILE`` for a file of weights
            of the whole model, as timm saves them, in safetensors or in a format that torch loads safely.
        map_location: Not used: weights are loaded on the CPU.

    Raises:
        UnfitWeights: The file lacks a tensor of the model, or has one with another shape; the message names the first.
    """
    name, _, file = uri.removeprefix("timm://").partition(":")
    overlay: dict[str, Any] = {}
    if file:
        state = timm.models.load_state_dict(file, use_ema=True, weights_only=True)
        _check_fit(name, state)
        overlay = {"pretrained_cfg_overlay": {"state_dict": state}}
    loaded = create_features(name, pretrained=True, **overlay)
    return {f"model.{key}": tensor for key, tensor in loaded.state_dict().items()}


def _check_fit(name: str, state: dict[str, Any]) -> None:
    """Raise UnfitWeights if weights lack a tensor of a timm model, except its classifier's; timm would only log it."""
    with torch.device("meta"):
        whole: Any = timm.create_model(name)
    convert = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)
    found = convert(dict(state), whole) if convert else state
    classifier = whole.pretrained_cfg["classifier"]
    ignored = tuple(f"{layer}." for layer in ([classifier] if isinstance(classifier, str) else classifier or ()))
    for key, tensor in whole.state_dict().items():
        if key.startswith(ignored) or key.endswith("num_batches_tracked"):
            continue
        shapes = [tuple(tensor.shape), tuple(found[key].shape) if key in found else None]
        if shapes[0] != shapes[1]:
            raise UnfitWeights(f"expected {key} of shape {shapes[0]}, found {shapes[1]}")
