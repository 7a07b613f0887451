"""Data loaders of a split, as MMEngine's configs have them."""

from typing import Any

from smnas_optuna.data.datasets import DatasetSplit


def loader_config(
    split: DatasetSplit,
    classes: tuple[str, ...],
    pipeline: list[dict[str, Any]],
    *,
    learn: bool,
    batch_size: int,
    workers: int,
    pinned: bool = False,
) -> dict[str, Any]:
    """Return the config of a loader.

    Args:
        split: Where the images and their annotations are.
        classes: Names, in the order of their labels.
        pipeline: What is done to an image, MMDetection's transforms.
        learn: For training: shuffled, images of like shape together, none without objects.
        batch_size: Images per batch and process.
        workers: Processes that load.
        pinned: Hand batches over in memory from which a GPU copies them while the CPU goes on.
    """
    return {
        "batch_size": batch_size,
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": pinned,
        "sampler": {"type": "DefaultSampler", "shuffle": learn},
        **({"batch_sampler": {"type": "AspectRatioBatchSampler"}} if learn else {}),
        "dataset": {
            "type": "CocoDataset",
            "metainfo": {"classes": classes},
            "ann_file": str(split.annotations),
            "data_prefix": {"img": str(split.images)},
            "filter_cfg": {"filter_empty_gt": True} if learn else None,
            "test_mode": not learn,
            "pipeline": pipeline,
        },
    }
