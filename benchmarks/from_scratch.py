"""Train one detector from scratch in the ways of SM-NAS's Table 4, and see whether they come in its order.

The paper: batch normalisation (24.8 mAP) < group normalisation (29.4) < with weight standardisation (30.7) < with a
five times larger learning rate (36.4), for FPN with ResNet-50 on COCO at two images per GPU. Here the detector and the
data are the demo's; initialisation and shuffling differ between the seeds. Printed per way: mean mAP over the seeds,
their standard deviation and range, the mean of the last epoch's loss; then whether the order shows, and how often it
does in pairs of runs with the same seed.

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
from smnas_optuna.training.process import evaluate, preload

# Norm, weight standardisation, factor of the learning rate, and what the paper measured.
WAYS = {
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
    for way, (norm, standardized, factor, paper) in WAYS.items():
        detector = stage.detector.model_copy(update={"norm": norm, "weight_standardization": standardized})
        found, losses = [], []
        for seed in range(arguments.seeds):
            changes = {"lr": arguments.lr * factor, "base_batch_size": None, "seed": seed, "epochs": epochs}
            training = stage.training.model_copy(update=changes)
            with tempfile.TemporaryDirectory() as folder:
                job = Job(architecture, dataset, detector, training, recipe.device, Path(folder), kind="cpu")
                with closing(evaluate(job)) as events:
                    for event in events:
                        if isinstance(event, Scores):
                            found.append(event.metrics["map"])
                        elif isinstance(event, Progress) and event.epoch == epochs:
                            losses.append(event.loss)
                        elif isinstance(event, Failure):
                            print(f"{way}, seed {seed}: {event.reason}")
                            found.append(0.0)
        print(
            f"{way:14} {arguments.lr * factor:7.4f} {np.mean(found):9.3f} {np.std(found):6.3f} {min(found):7.3f} "
            f"{max(found):8.3f} {np.mean(losses) if losses else np.nan:7.3f}   {paper}",
            flush=True,
        )
        means.append(float(np.mean(found)))
        scores.append(found)
    for (worse, low), (better, high) in itertools.pairwise(zip(WAYS, scores, strict=True)):
        wins = sum(b > a for a, b in zip(low, high, strict=True))
        print(f"{better} above {worse}: {wins} of {len(low)} seeds")
    print("the paper's order shows in the means" if means == sorted(means) else "the paper's order does NOT show")


if __name__ == "__main__":
    main()
