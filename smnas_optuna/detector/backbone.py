"""The network of a backbone code, built of MMDetection's own blocks and registered in MMDetection's registry.

Configs that use it list ``smnas_optuna.detector.layers``, which imports this module, in ``custom_imports``.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from mmcv.cnn import ConvModule, build_conv_layer, build_norm_layer
from mmdet.registry import MODELS
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from smnas_optuna.detector import mmcv_ops
from smnas_optuna.parts.backbones.searched import BackboneCode

mmcv_ops.install()
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck  # noqa: E402  # imports mmcv.ops
from mmdet.models.backbones.resnext import Bottleneck as ResNeXtBottleneck  # noqa: E402
from mmdet.models.layers import InvertedResidual  # noqa: E402

Config = dict[str, Any]

_BATCH_NORM = {"type": "BN", "requires_grad": True}
_RESIDUAL_BLOCKS = {"basicblock": BasicBlock, "bottleneck": Bottleneck, "Xbottleneck": ResNeXtBottleneck}
_MB_EXPANSION = 6


def fix_statistics(network: nn.Module) -> None:
    """Keep the statistics of a network's batch normalisation as they are, until it is set to training again."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


@MODELS.register_module()
class SearchedBackbone(BaseModule):  # type: ignore[misc]  # mmengine is untyped
    """The network of a backbone code (Yao et al., AAAI 2020, section 3.2.2).

    The stem consists of two 3x3 convolutions of stride 2, 3 -> base/2 -> base channels, each with normalisation and
    ReLU. Four stages at strides 4, 8, 16 and 32 follow; the first block of each stage but the first has stride 2. The
    blocks are MMDetection's:

    - ``basicblock`` and ``bottleneck`` of ResNet, the stride in the bottleneck's 3x3 convolution;
    - ``Xbottleneck`` of ResNeXt, base/2 groups, the 3x3 convolution twice as wide as the block's planes, so that base
      64 is 32x4d;
    - ``MBblock`` of MobileNetV2, expansion 6, ReLU.

    In the first three, shortcuts have a 1x1 convolution with normalisation where stride or channels change. The code of
    a published network builds that network: its stem is a 7x7 convolution and max-pooling, and its parameters have the
    names of MMDetection's ``ResNet`` and ``ResNeXt``, so their weights fit.

    Args:
        code: Backbone code such as ``basicblock_56_12-11111-211-1112``; the base has to be even.
        out_indices: Indices of the stages, 0 to 3, whose features are returned; later stages are not built.
        frozen_stages: Number of stages, from the first, that are not trained, nor is the stem; 0 freezes the stem
            alone, -1 nothing.
        conv_cfg: Config of the convolutions; None for plain ones.
        norm_cfg: Config of the normalisation layers.
        norm_eval: Keep the statistics of batch normalisation fixed in training.
        with_cp: Recompute the activations of each block in the backward pass, which takes less memory and more time.
        init_cfg: Config of the initialisation; None for that of MMDetection's ResNet, which is Kaiming, with 0 in the
            last normalisation of each residual branch.

    Attributes:
        out_channels: Channels of each returned feature level.

    Raises:
        ValueError: ``code`` is not valid, its base is odd (or 2 with ``Xbottleneck``, which needs at least 2 groups),
            or ``out_indices`` are not within 0 to 3.
    """

    def __init__(
        self,
        code: str,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        conv_cfg: Config | None = None,
        norm_cfg: Config = _BATCH_NORM,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: Config | list[Config] | None = None,
    ) -> None:
        parsed = BackboneCode.read(code)
        if parsed.base % 2:
            raise ValueError(f"backbone code {code}: found the odd base {parsed.base}, expected an even one")
        if parsed.block == "Xbottleneck" and parsed.base < 4:
            raise ValueError(f"backbone code {code}: found the base {parsed.base}, expected 4 or more")
        if not set(out_indices) <= {0, 1, 2, 3} or not out_indices:
            raise ValueError(f"out_indices: found {tuple(out_indices)}, expected some of 0, 1, 2, 3")
        from_scratch = [
            {"type": "Kaiming", "layer": "Conv2d"},
            {"type": "Constant", "val": 1, "layer": ["_BatchNorm", "GroupNorm"]},
        ]
        super().__init__(from_scratch if init_cfg is None else init_cfg)
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self._code = parsed
        self._layers = {"conv_cfg": conv_cfg, "norm_cfg": norm_cfg}
        self._with_cp = with_cp
        self._zero_branches = init_cfg is None

        stem = self._published_stem() if parsed.is_published else {"stem": self._searched_stem()}
        stages = {}
        channels = parsed.base
        out_channels = []
        for index in range(max(out_indices) + 1):
            stages[f"layer{index + 1}"], channels = self._stage(index, channels)
            if index in out_indices:
                out_channels.append(channels)
        self.out_channels = tuple(out_channels)
        self.stem_layers, self.res_layers = list(stem), list(stages)
        for name, module in {**stem, **stages}.items():
            self.add_module(name, module)
        self._freeze_stages()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the features of the stages in ``out_indices``, in the order of the stages.

        Args:
            images: ``n x 3 x h x w``.

        Returns:
            A tensor for each stage i, ``n x channels x h / 2^(i + 2) x w / 2^(i + 2)``, with sides rounded up.
        """
        features = images
        for name in self.stem_layers:
            features = getattr(self, name)(features)
        outputs = []
        for index, name in enumerate(self.res_layers):
            features = getattr(self, name)(features)
            if index in self.out_indices:
                outputs.append(features)
        return tuple(outputs)

    def train(self, mode: bool = True) -> "SearchedBackbone":
        """Set the training mode; frozen stages, and with ``norm_eval`` all batch statistics, do not change in it."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            fix_statistics(self)
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        for name in self.stem_layers + self.res_layers[: self.frozen_stages]:
            getattr(self, name).eval().requires_grad_(False)

    def _published_stem(self) -> dict[str, nn.Module]:
        base = self._code.base
        name, norm = build_norm_layer(self._layers["norm_cfg"], base, postfix=1)
        return {
            "conv1": self._conv(3, base, kernel_size=7, stride=2, padding=3),
            name: norm,
            "relu": nn.ReLU(inplace=True),
            "maxpool": nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        }

    def _searched_stem(self) -> nn.Module:
        half, base = self._code.base // 2, self._code.base
        stem: nn.Module = Sequential(
            ConvModule(3, half, 3, stride=2, padding=1, **self._layers),
            ConvModule(half, base, 3, stride=2, padding=1, **self._layers),
        )
        return stem

    def _stage(self, index: int, channels: int) -> tuple[nn.Module, int]:
        """Return a stage with ``channels`` input channels, and its number of output channels."""
        blocks = []
        for number, planes in enumerate(self._code.planes[index]):
            stride = 2 if index > 0 and number == 0 else 1
            if self._code.block == "MBblock":
                blocks.append(self._inverted_block(channels, planes, stride))
                channels = planes
            else:
                blocks.append(self._residual_block(channels, planes, stride))
                channels = planes * blocks[-1].expansion
        return Sequential(*blocks), channels

    def _inverted_block(self, channels: int, planes: int, stride: int) -> Any:
        middle = _MB_EXPANSION * channels
        return InvertedResidual(channels, planes, middle, stride=stride, with_cp=self._with_cp, **self._layers)

    def _residual_block(self, channels: int, planes: int, stride: int) -> Any:
        kind = _RESIDUAL_BLOCKS[self._code.block]
        options: Config = {}
        if kind is ResNeXtBottleneck:
            # MMDetection multiplies planes by base_width / base_channels and rounds down. With floats the result is
            # too small by one for some bases, such as 98.
            base = self._code.base
            options = {"groups": base // 2, "base_width": Fraction(4), "base_channels": base}
        if self._zero_branches:
            # For ResNeXt too: MMDetection documents it, but does it for ResNet's own blocks only.
            last = "norm2" if kind is BasicBlock else "norm3"
            options["init_cfg"] = {"type": "Constant", "val": 0, "override": {"name": last}}
        outputs = planes * kind.expansion
        if stride != 1 or channels != outputs:
            shortcut = self._conv(channels, outputs, kernel_size=1, stride=stride)
            options["downsample"] = nn.Sequential(shortcut, build_norm_layer(self._layers["norm_cfg"], outputs)[1])
        return kind(channels, planes, stride=stride, with_cp=self._with_cp, **self._layers, **options)

    def _conv(self, inputs: int, outputs: int, **geometry: int) -> nn.Module:
        layer: nn.Module = build_conv_layer(self._layers["conv_cfg"], inputs, outputs, bias=False, **geometry)
        return layer
