"""Writes the table of plans for typical data and machines into ``plans.md``.

python docs/plans.py
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smnas_optuna.parts.architecture import InputSize
from smnas_optuna.parts.detector import Detector
from smnas_optuna.planning.facts import DataFacts, Speed
from smnas_optuna.planning.plan import Plan, make_plan
from smnas_optuna.planning.rules import candidates
from smnas_optuna.recipe.settings import FolderDataset
from smnas_optuna.study.budget import duration_text, parse_duration
from smnas_optuna.training.job import Machine

PAGE = Path(__file__).parent / "plans.md"
_BEGIN, _END = "<!-- made by docs/plans.py -->", "<!-- end -->"

LAPTOP = Machine("cpu", "CPU", 0, 16, 8)
SMALL_GPU = Machine("cuda", "GPU", 1, 12, 8)
SERVER = Machine("cuda", "GPU", 8, 80, 128)
# Seconds for a training image of 640x640 pixels; a plan measures them.
_SECONDS = {"cpu": 0.8, "cuda": 0.012}


@dataclass(frozen=True)
class Case:
    """Data, a machine and a budget."""

    title: str
    data: DataFacts
    machine: Machine = SMALL_GPU
    budget: str = "6h"
    has_weights: bool = True

    def plan(self) -> Plan:
        """Return the plan."""

        def measure(texts: Sequence[str], batch: int, detector: Detector) -> Speed:
            sizes = [InputSize.parse(text.partition(" ")[0]) for text in texts]
            each = _SECONDS[self.machine.kind] / 640**2
            return Speed({text: each * size.width * size.height for text, size in zip(texts, sizes, strict=True)})

        names = candidates(self.machine.kind) if self.has_weights else ()
        dataset = FolderDataset(kind="folder", root=Path("photos"))
        weights = dict.fromkeys(names, "ImageNet")
        return make_plan("photos", dataset, self.data, self.machine, weights, parse_duration(self.budget), measure)


def facts(
    train: int, *, val: int | None = None, classes: int = 10, size: tuple[int, int] = (1280, 960), small: float = 40
) -> DataFacts:
    """Return properties of data whose median box is twice as large as the small ones."""
    images = val or max(1, train // 4)
    return DataFacts(train, images, classes, *size, small_side=small, median_side=2 * small, crowding=20)


CASES = (
    Case("100 photographs, on a CPU", facts(100, val=25), LAPTOP, "1h"),
    Case("100 photographs", facts(100, val=25), budget="1h"),
    Case("2,000 photographs", facts(2_000)),
    Case("2,000 photographs, no weights to be had", facts(2_000), has_weights=False),
    Case("100,000 frames of videos", facts(100_000, val=5_000, size=(1920, 1080))),
    Case("100,000 frames, 8 GPUs, 2 days", facts(100_000, val=5_000, size=(1920, 1080)), SERVER, "2d"),
    Case("tiny objects", facts(2_000, size=(1024, 1024), small=8)),
    Case("images of 3840x2160", facts(2_000, size=(3840, 2160), small=60)),
    Case("one class, small images", facts(500, classes=1, size=(320, 240), small=25)),
    Case("500 classes", facts(50_000, classes=500), SERVER, "1d"),
)

_HEADINGS = (
    "data",
    "machine",
    "budget",
    "input sizes",
    "batch",
    "steps",
    "epochs",
    "a trial",
    "trials",
    "heads",
    "optimizer",
    "final epochs",
)


def table() -> str:
    """Return the table, as Markdown."""
    rows = [_HEADINGS, tuple("---" for _ in _HEADINGS), *map(_row, CASES)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(case: Case) -> tuple[str, ...]:
    plan = case.plan()
    structural, schedule = plan.recipe["structural"], plan.schedule
    training = structural["training"]
    machine = "CPU" if case.machine.kind == "cpu" else f"{case.machine.gpus} GPU{'s' if case.machine.gpus > 1 else ''}"
    images = schedule.train_images
    seen = f"{schedule.epochs} of {images:,} images" if images < case.data.train_images else str(schedule.epochs)
    return (
        case.title,
        machine,
        case.budget,
        ", ".join(structural["space"]["input_sizes"]),
        str(training["batch_size"]),
        f"{schedule.steps:,}",
        seen,
        duration_text(schedule.seconds),
        str(schedule.trials),
        str(len(structural["space"]["heads"])),
        training.get("optimizer", "as published"),
        str(plan.recipe["final"]["epochs"]),
    )


def page() -> str:
    """Return the page with the table."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    return f"{before}{_BEGIN}\n\n{table()}\n{_END}{rest.partition(_END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
