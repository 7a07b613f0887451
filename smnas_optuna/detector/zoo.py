"""Published detectors for comparison: architecture or config, accuracy and speed, and where these were measured.

The values are from Tables 2 and 3 of SM-NAS (Yao et al., AAAI 2020) and from MMDetection, on COCO. The paper misprints
the base of two backbones, which does not give the printed parameters and FLOPs; here E1 has base 72 (printed 56) and E2
base 56 (printed 48), which do.
"""

import difflib
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import yaml

from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.backbone import BACKBONES, Backbone
from smnas_optuna.search_space.candidate import PUBLISHED


@dataclass(frozen=True)
class Published:
    """A published detector.

    Args:
        name: Name in the paper and on the command line.
        ap: COCO average precision, in percent.
        split: Split of COCO 2017 on which the precision was measured: ``val`` or ``test-dev``.
        milliseconds: Inference time of one image on ``hardware``; None if it was not published.
        input_size: Input size ``WIDTHxHEIGHT`` at which precision and time were measured.
        architecture: The architecture, if this package can describe it.
        config: Path of MMDetection's config, relative to its folder ``configs``, if there is one. Without an
            architecture the detector is built from it.
        hardware: GPU on which the time was measured.
        source: Where the values were published.
    """

    name: str
    ap: float
    split: str
    milliseconds: float | None
    input_size: str
    architecture: Architecture | None = None
    config: PurePosixPath | None = None
    hardware: str = "V100"
    source: str = "SM-NAS (Yao et al., AAAI 2020)"


def _searched(number: int, size: str, rest: str, milliseconds: float, ap: float) -> Published:
    architecture = Architecture.parse(f"{size} {PUBLISHED[number]} {rest}")
    return Published(f"E{number}", ap, "val", milliseconds, size, architecture, source="SM-NAS, Table 2")


def _classic(name: str, text: str, milliseconds: float, ap: float) -> Published:
    size = text.partition(" ")[0]
    return Published(name, ap, "test-dev", milliseconds, size, Architecture.parse(text), source="SM-NAS, Table 3")


def _config(name: str, size: str, config: str, milliseconds: float, ap: float) -> Published:
    return Published(name, ap, "test-dev", milliseconds, size, config=PurePosixPath(config), source="SM-NAS, Table 3")


PAPERS_DETECTORS = {
    entry.name: entry
    for entry in (
        _searched(0, "512x512", "FPN(P2-P5,c=128) RPN 2FC", 24.5, 27.1),
        _searched(1, "800x600", "FPN(P2-P5,c=256) RPN 2FC", 32.2, 34.3),
        _searched(2, "800x600", "FPN(P1-P5,c=128) RPN Cascade(n=3)", 39.5, 40.1),
        _searched(3, "800x600", "FPN(P1-P5,c=128) RPN Cascade(n=3)", 50.7, 42.7),
        _searched(4, "800x600", "FPN(P1-P5,c=256) GA-RPN Cascade(n=3)", 80.2, 43.9),
        _searched(5, "1333x800", "FPN(P1-P5,c=256) GA-RPN Cascade(n=3)", 108.1, 46.1),
        _classic("RetinaNet", "1333x800 ResNet101 FPN(P2-P6,c=256) RetinaNet", 91.7, 39.1),
        _classic("Faster-RCNN", "1333x800 ResNet101 FPN(P1-P5,c=256) RPN 2FC", 84.0, 39.4),
        _classic("Cascade-RCNN", "1333x800 ResNet101 FPN(P1-P5,c=256) RPN Cascade(n=3)", 97.9, 42.8),
        _classic("GA-Faster-RCNN", "1333x800 ResNet50 FPN(P1-P5,c=256) GA-RPN 2FC", 104.2, 39.8),
        _config("Mask-RCNN", "1333x800", "mask_rcnn/mask-rcnn_r101_fpn_1x_coco.py", 105.0, 40.2),
        _config("FSAF", "1333x800", "fsaf/fsaf_r101_fpn_1x_coco.py", 92.5, 40.9),
        # The paper's NAS-FPN has 384 channels; MMDetection's has 256.
        _config("NAS-FPN", "1280x1280", "nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco.py", 198.7, 45.4),
    )
}
"""The detectors of Tables 2 and 3 of SM-NAS, by name."""


def _mmdet(name: str, text: str, config: str, milliseconds: float | None, ap: float) -> Published:
    path = PurePosixPath(config)
    source = f"MMDetection 3.3, configs/{path.parent}/metafile.yml"
    size = text.partition(" ")[0]
    return Published(name, ap, "val", milliseconds, size, Architecture.parse(text), path, source=source)


def _rtmdet(size: str, neck: str, ap: float) -> Published:
    text = f"640x640 CSPNeXt-{size} {neck} RTMDet"
    return _mmdet(f"RTMDet-{size}", text, f"rtmdet/rtmdet_{size}_8xb32-300e_coco.py", None, ap)


_R50 = "1333x800 ResNet50"

DETECTORS = PAPERS_DETECTORS | {
    entry.name: entry
    for entry in (
        _rtmdet("tiny", "CSPNeXtPAFPN(P2-P4,c=96)", 40.9),
        _rtmdet("s", "CSPNeXtPAFPN(P2-P4,c=128)", 44.5),
        _rtmdet("m", "CSPNeXtPAFPN(P2-P4,c=192,n=2)", 49.1),
        _mmdet("ATSS-R50", f"{_R50} FPN(P2-P6,c=256) ATSS", "atss/atss_r50_fpn_1x_coco.py", 50.76, 39.4),
        _mmdet("GFL-R50", f"{_R50} FPN(P2-P6,c=256) GFL", "gfl/gfl_r50_fpn_1x_coco.py", 51.28, 40.2),
        _mmdet(
            "FCOS-R50",
            f"{_R50}-caffe FPN(P2-P6,c=256) FCOS",
            "fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py",
            None,
            38.7,
        ),
        _mmdet(
            "FasterRCNN-R50-PAFPN",
            f"{_R50} PAFPN(P1-P5,c=256) RPN 2FC",
            "pafpn/faster-rcnn_r50_pafpn_1x_coco.py",
            58.14,
            37.5,
        ),
    )
}
"""All published detectors, by name."""

# Further detectors of MMDetection, from whose weights others with the same backbone can start.
_ALSO_TRAINED = {
    "ResNet50 FPN(P1-P5,c=256) RPN 2FC": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "ResNet101 FPN(P1-P5,c=256) RPN 2FC": "faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py",
    "ResNeXt101 FPN(P1-P5,c=256) RPN 2FC": "faster_rcnn/faster-rcnn_x101-32x4d_fpn_1x_coco.py",
    "ResNet50 FPN(P1-P5,c=256) RPN Cascade(n=3)": "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py",
    "ResNet101 FPN(P1-P5,c=256) RPN Cascade(n=3)": "cascade_rcnn/cascade-rcnn_r101_fpn_1x_coco.py",
    "ResNet18 FPN(P2-P6,c=256) RetinaNet": "retinanet/retinanet_r18_fpn_1x_coco.py",
    "ResNet50 FPN(P2-P6,c=256) RetinaNet": "retinanet/retinanet_r50_fpn_1x_coco.py",
    "ResNet101 FPN(P2-P6,c=256) RetinaNet": "retinanet/retinanet_r101_fpn_1x_coco.py",
}


@cache
def trained_on_coco(backbone: Backbone | None = None) -> tuple[tuple[Architecture, str], ...]:
    """Return detectors whose weights, trained on COCO, MMDetection publishes, each with the URL of its weights.

    Args:
        backbone: Their backbone, so that only their metafiles are read; None for all detectors.
    """
    named = {entry.architecture: entry.config for entry in DETECTORS.values() if entry.architecture and entry.config}
    named |= {Architecture.parse(f"1333x800 {text}"): PurePosixPath(path) for text, path in _ALSO_TRAINED.items()}
    wanted = {each: config for each, config in named.items() if backbone in (None, each.backbone)}
    found = [(architecture, _weights_of(config)) for architecture, config in wanted.items()]
    return tuple((architecture, url) for architecture, url in found if url)


def _weights_of(config: PurePosixPath) -> str | None:
    """Return the URL of the weights that a metafile of MMDetection lists for a config."""
    package = importlib.util.find_spec("mmdet")  # without importing it, which imports torch
    if package is None or package.origin is None:
        return None
    metafile = Path(package.origin).parent / ".mim" / "configs" / config.parent / "metafile.yml"
    if not metafile.is_file():
        return None
    models = yaml.safe_load(metafile.read_text(encoding="utf-8"))["Models"]
    return next((model.get("Weights") for model in models if model["Config"] == f"configs/{config}"), None)


_BACKBONES = {
    "R18": "ResNet18",
    "R34": "ResNet34",
    "R50": "ResNet50",
    "R101": "ResNet101",
    "X50": "ResNeXt50",
    "X101": "ResNeXt101",
}


def find_detector(name: str) -> Published:
    """Return a published detector by its name.

    Raises:
        ValueError: There is no such detector; the message suggests a similar name, or lists all.
    """
    for known, entry in DETECTORS.items():
        if known.lower() == name.lower():
            return entry
    close = difflib.get_close_matches(name.upper(), [known.upper() for known in DETECTORS], n=1)
    similar = next((known for known in DETECTORS if close and known.upper() == close[0]), None)
    hint = f"did you mean {similar}?" if similar else f"expected {', '.join(DETECTORS)}"
    raise ValueError(f"{name!r}: no such detector; {hint}")


def find_backbone(text: str) -> Backbone:
    """Return a backbone by its code, its published or short name (``ResNet50``, ``R50``), or a detector's name.

    Raises:
        ValueError: The text is none of these.
    """
    if text.upper() not in (name.upper() for name in DETECTORS):
        return BACKBONES.parse(_BACKBONES.get(text.upper(), text))
    architecture = find_detector(text).architecture
    if architecture is None:
        raise ValueError(f"{text!r}: its backbone has no code; --zoo {text} counts the whole detector")
    return architecture.backbone
