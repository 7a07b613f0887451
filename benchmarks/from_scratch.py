"""Train a detector from scratch with the four settings of SM-NAS's Table 4, and compare their order with the paper's.

The paper reports, for FPN with ResNet-50 on COCO with two images per GPU: batch normalisation (24.8 mAP) < group
normalisation (29.4) < group normalisation with weight standardisation (30.7) < the same with a five times larger
learning rate (36.4). Here the detector and the data are those of the demo; initialisation and shuffling differ between
seeds. For each setting the benchmark prints mean, standard deviation and range of the mAP over the seeds, and the mean
loss of the last epoch. Then it prints whether the means have the paper's order, and how often pairs of runs with the
same seed do.

    python benchmarks/from_scratch.py [--recipe digits] [--seeds 3] [--lr 0.008] [--epochs N] [--set KEY=VALUE ...]
"""

import argparse
import itertools
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np

from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.training.job import Failure, Job, Progress, Scores
from smnas_optuna.training.process import evaluate
from smnas_optuna.training.server import preload

# Normalisation, weight standardisation, factor of the learning rate, and the paper's mAP.
SETTINGS = {
    "BN": ("BN", False, 1, 24.8),
    "GN": ("GN", False, 1, 29.4),
    "GN+WS": ("GN", True, 1, 30.7),
    "GN+WS, 5 x lr": ("GN", True, 5, 36.4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.008, help="the lower learning rate")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    stage = recipe.structural
    architecture = Architecture.parse(stage.seeds[0])
    dataset = open_dataset(recipe.dataset)
    preload()
    epochs = arguments.epochs or stage.training.epochs
    print(f"{architecture}, {epochs} epochs from scratch at batch size {stage.training.batch_size}")
    print(f"{'':14} {'lr':>7} {'mean mAP':>9} {'std':>6} {'lowest':>7} {'highest':>8} {'loss':>7}   paper")
    means, scores = [], []
    for setting, (norm, standardized, factor, paper) in SETTINGS.items():
        detector = stage.detector.model_copy(update={"norm": norm, "weight_standardization": standardized})
        precisions, losses = [], []
        for seed in range(arguments.seeds):
            changes = {"lr": arguments.lr * factor, "base_batch_size": None, "seed": seed, "epochs": epochs}
            training = stage.training.model_copy(update=changes)
            with tempfile.TemporaryDirectory() as folder:
                job = Job(architecture, dataset, detector, training, recipe.device, Path(folder), kind="cpu")
                with closing(evaluate(job)) as events:
                    for event in events:
                        if isinstance(event, Scores):
                            precisions.append(event.metrics["map"])
                        elif isinstance(event, Progress) and event.epoch == epochs:
                            losses.append(event.loss)
                        elif isinstance(event, Failure):
                            print(f"{setting}, seed {seed}: {event.reason}")
                            precisions.append(0.0)
        mean = float(np.mean(precisions))
        print(
            f"{setting:14} {arguments.lr * factor:7.4f} {mean:9.3f} {np.std(precisions):6.3f} {min(precisions):7.3f} "
            f"{max(precisions):8.3f} {np.mean(losses) if losses else np.nan:7.3f}   {paper}",
            flush=True,
        )
        means.append(mean)
        scores.append(precisions)
    for (worse, low), (better, high) in itertools.pairwise(zip(SETTINGS, scores, strict=True)):
        wins = sum(b > a for a, b in zip(low, high, strict=True))
        print(f"{better} above {worse}: {wins} of {len(low)} seeds")
    print(f"the means {'have' if means == sorted(means) else 'do NOT have'} the paper's order")


if __name__ == "__main__":
    main()
