"""Configs of data loaders for MMEngine's Runner."""

from typing import Any

from smnas_optuna.data.datasets import DatasetSplit


def loader_config(
    split: DatasetSplit,
    classes: tuple[str, ...],
    pipeline: list[dict[str, Any]],
    *,
    training: bool,
    batch_size: int,
    workers: int,
    pinned: bool = False,
) -> dict[str, Any]:
    """Return the config of a data loader.

    Args:
        split: Paths of the images and the annotations.
        classes: Names of the classes, in the order of their labels.
        pipeline: Configs of MMDetection's transforms.
        training: Shuffle the images, put images of the same orientation into a batch, and leave out images without
            objects.
        batch_size: Images per batch and process.
        workers: Number of processes that load images.
        pinned: Put batches into pinned memory, from which a GPU copies them while the CPU continues.
    """
    return {
        "batch_size": batch_size,
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": pinned,
        "sampler": {"type": "DefaultSampler", "shuffle": training},
        **({"batch_sampler": {"type": "AspectRatioBatchSampler"}} if training else {}),
        "dataset": {
            "type": "CocoDataset",
            "metainfo": {"classes": classes},
            "ann_file": str(split.annotations),
            "data_prefix": {"img": str(split.images)},
            "filter_cfg": {"filter_empty_gt": True} if training else None,
            "test_mode": not training,
            "pipeline": pipeline,
        },
    }
