"""Speed of computing a backbone's costs by formula, compared with building it and counting with torch.

For each type of block, random codes are drawn from the whole modular space. The benchmark prints how many codes per
second the formula and the counter handle, at an input size of 800x600, and the ratio.

    python benchmarks/costs.py [--codes 20000] [--built 20]
"""

import argparse
import time

import optuna

from smnas_optuna.detector.backbone import SearchedBackbone  # noqa: F401  # registers it
from smnas_optuna.detector.counting import count_backbone
from smnas_optuna.detector.flops import backbone_costs
from smnas_optuna.parts.architecture import Architecture, InputSize
from smnas_optuna.parts.backbones.searched import BackboneCode
from smnas_optuna.search_space.modular import ModularSpace

INPUT = InputSize(800, 608)
KINDS = {"basicblock": "ResNet18", "bottleneck": "ResNet50", "Xbottleneck": "ResNeXt50", "MBblock": "MobileNetV2"}


def random_codes(backbone: str, count: int) -> list[BackboneCode]:
    space = ModularSpace().for_candidate(Architecture.parse(f"800x600 {backbone} FPN(P1-P4,c=256) RPN 2FC"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    codes = []
    for _ in range(count):
        code = space.suggest(study.ask()).backbone
        assert isinstance(code, BackboneCode)
        codes.append(code)
    return codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codes", type=int, default=20_000)
    parser.add_argument("--built", type=int, default=20)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"{'block':12} {'formula /s':>11} {'built /s':>9} {'ratio':>7}")
    for block, backbone in KINDS.items():
        codes = random_codes(backbone, arguments.codes)
        started = time.perf_counter()
        costs = [backbone_costs(code, INPUT) for code in codes]
        by_formula = len(codes) / (time.perf_counter() - started)
        started = time.perf_counter()
        for code, cost in zip(codes[: arguments.built], costs, strict=False):
            assert count_backbone({"type": "SearchedBackbone", "code": str(code)}, INPUT) == cost
        built = arguments.built / (time.perf_counter() - started)
        print(f"{block:12} {by_formula:11,.0f} {built:9.1f} {by_formula / built:7,.0f}", flush=True)


if __name__ == "__main__":
    main()
