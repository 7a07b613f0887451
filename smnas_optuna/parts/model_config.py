"""Converts an Architecture to the ``model`` of an MMDetection config.

Settings that an architecture does not determine are those of MMDetection's own configs, so that published detectors are
those that MMDetection ships. There is one difference: the RPN of a Cascade R-CNN is trained as that of a Faster R-CNN,
so that equal texts of a part mean equal parts.
"""

from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.levels import Features, stride_of
from smnas_optuna.parts.part import Config


def custom_imports(architecture: Architecture) -> Config:
    """Return a config's ``custom_imports``: the Python modules that register what MMDetection lacks."""
    modules = [type(part).__module__ for part in architecture.parts]
    added = [module for module in dict.fromkeys(modules) if not module.startswith("smnas_optuna.")]
    return {"imports": ["smnas_optuna.detector.layers", *added], "allow_failed_imports": False}


def model_config(
    architecture: Architecture,
    *,
    classes: int,
    detector: Detector,
    weights: str | None = None,
    of_detector: bool = False,
) -> Config:
    """Return the ``model`` of an MMDetection config for an architecture; raises ValueError if a part cannot be built.

    Args:
        architecture: The architecture; the base channels of a backbone code have to be even to build a network.
        classes: Number of object classes, background not counted.
        detector: Settings that all detectors of the search share.
        weights: URI or file of a checkpoint for the backbone; None for random weights.
        of_detector: Whether ``weights`` are those of a whole detector. Everything is then loaded from it that fits in
            name and shape.
    """
    backbone, neck, head = architecture.backbone, architecture.neck, architecture.head
    levels = architecture.backbone_levels
    channels = backbone.channels(levels)
    strides = tuple(map(stride_of, neck.output_levels if neck else levels))
    features = Features(
        strides,
        # As in FPN (Lin et al. 2017), levels above the backbone's only propose regions; RoIs come from the others.
        roi_strides=strides[: len(levels)],
        channels=neck.channels if neck else channels[0],
        one_level=neck is None,
    )
    backbone_config = backbone.config(levels, detector, weights)
    if of_detector:
        backbone_config.pop("init_cfg", None)  # the detector's loads the backbone, too
    return {
        **({"init_cfg": {"type": "Pretrained", "checkpoint": weights}} if of_detector else {}),
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            **backbone.normalization,
            "pad_size_divisor": 32,
        },
        "backbone": backbone_config,
        "neck": neck.config(channels, head.MORE_LEVELS, detector) if neck else None,
        **head.config(features, architecture.rpn, classes, detector),
    }
