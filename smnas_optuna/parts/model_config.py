"""From an Architecture to the model part of an MMDetection config.

Settings that an architecture does not choose are those of MMDetection's own configs for Faster R-CNN, Cascade R-CNN,
RetinaNet and Guided Anchoring, so that the classic detectors come out as MMDetection ships them. One thing differs: a
Cascade R-CNN's RPN learns as a Faster R-CNN's does, so that two architectures whose texts share a part share that part.
"""

from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.levels import Features, stride_of
from smnas_optuna.parts.part import Config

# ImageNet's mean and standard deviation of red, green and blue, 0 to 255.
NORMALIZATION: Config = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}


def custom_imports(architecture: Architecture) -> Config:
    """Return a config's ``custom_imports``: what registers the modules of an architecture that MMDetection lacks."""
    modules = [type(part).__module__ for part in architecture.parts]
    added = [module for module in dict.fromkeys(modules) if not module.startswith("smnas_optuna.")]
    return {"imports": ["smnas_optuna.detector.layers", *added], "allow_failed_imports": False}


def model_config(architecture: Architecture, *, classes: int, detector: Detector, weights: str | None = None) -> Config:
    """Return the ``model`` of an MMDetection config for an architecture.

    Args:
        architecture: What to build; the base channels of a backbone code have to be even.
        classes: Number of object classes, background not counted.
        detector: What all detectors of the search have in common.
        weights: Checkpoint for the backbone, a URI or a file; None to start from random weights.
    """
    backbone, neck, head = architecture.backbone, architecture.neck, architecture.head
    levels = architecture.backbone_levels
    channels = backbone.channels(levels)
    strides = tuple(map(stride_of, neck.output_levels if neck else levels))
    features = Features(
        strides,
        # Levels made by pooling another are there to propose, as in FPN (Lin et al. 2017); RoIs are cut from others.
        roi_strides=strides[: len(levels)],
        channels=neck.channels if neck else channels[0],
        one_level=neck is None,
    )
    return {
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            **NORMALIZATION,
            "bgr_to_rgb": True,
            "pad_size_divisor": 32,
        },
        "backbone": backbone.config(levels, detector, weights),
        "neck": neck.config(channels, head.EXTRA_CONVS, detector) if neck else None,
        **head.config(features, architecture.rpn, classes, detector),
    }
