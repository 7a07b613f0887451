"""timm's models as backbones, registered in MMDetection's registry.

Configs that use them list ``smnas_optuna.detector.layers``, which imports this module, in ``custom_imports``.
"""

from collections.abc import Sequence
from typing import Any

import timm
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from timm.layers.format import Format
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from smnas_optuna.detector.backbone import fix_statistics

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
        init_cfg: Config of the initialisation; None for that of timm.

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


def create_features(model: str, out_indices: tuple[int, ...]) -> Any:
    """Create a timm model that returns feature maps of images of any size, with random weights."""
    for options in _ANY_SIZE:
        try:
            return timm.create_model(model, features_only=True, pretrained=False, out_indices=out_indices, **options)
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
