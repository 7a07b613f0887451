import io
import itertools
from pathlib import Path

import optuna
from optuna.trial import create_trial
from rich.console import Console

from smnas_optuna.execution.worker import Finished, Message, Ready, Requeued, TrialEvent
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.reporting.progress import SearchProgress, StudyReader, StudyState
from smnas_optuna.search.structural import StructuralSearch
from smnas_optuna.search.studies import open_study
from smnas_optuna.study.storage import open_storage
from smnas_optuna.training.job import Costs, Progress, Resumed, Target

TARGET = Target("cpu", "AMD EPYC", 1, 2**30, {})
SCORES = {"map": 0.25, "map_50": 0.5, "latency_ms": 7.0, "latency_spread_ms": 0.2}


def events_of(worker: int, trial: int, *events: Costs | Progress | Resumed) -> list[Message]:
    return [TrialEvent(worker, "structural", trial, "96x72 ResNet18 RetinaNet", event) for event in events]


def finished(worker: int, number: int, **attributes: object) -> Finished:
    state = optuna.trial.TrialState.FAIL if "reason" in attributes else optuna.trial.TrialState.COMPLETE
    value = 0.25 if state == optuna.trial.TrialState.COMPLETE else None
    trial = optuna.trial.create_trial(state=state, value=value, user_attrs=attributes)
    trial.number = number
    return Finished(worker, "structural", trial)


MESSAGES: list[Message] = [
    Ready(0, TARGET),
    Ready(1, TARGET),
    *events_of(0, 3, Costs(2_000_000_000, 5_000_000), Progress(1, 4, 2.0), Progress(2, 4, 1.0), Progress(3, 4, 0.5)),
    *events_of(1, 4, Costs(1_000_000_000, 1_000_000), Resumed(2), Progress(3, 4, 0.75)),
    finished(0, 3, **SCORES),
    Requeued(1, "structural", 2),
    finished(1, 4, reason="loss became nan"),
]


def show(messages: list[Message], *, terminal: bool = False, quiet: bool = False) -> tuple[str, SearchProgress]:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=120, highlight=False)
    done = itertools.count(4)

    def read(path: str) -> StudyState:
        assert path == "structural"
        return StudyState(next(done), "1.31 times that of the 3 starting detectors")

    progress = SearchProgress(console, {"structural": 3}, {"structural": 8}, read, quiet=quiet)
    with progress:
        for message in messages:
            progress.handle(message)
    return output.getvalue(), progress


def test_without_a_terminal_everything_is_a_plain_line() -> None:
    text, _ = show(MESSAGES)
    assert "\x1b" not in text
    assert text.splitlines()[:3] == [
        "worker 0 is ready on AMD EPYC",
        "worker 1 is ready on AMD EPYC",
        "trial 3: 96x72 ResNet18 RetinaNet (2 GFLOPs, 5 M parameters)",
    ]
    assert "trial 3: epoch 2/4, loss 1.000" in text
    assert "trial 4: resumes after epoch 2, where it was interrupted" in text
    assert "trial 3: mAP 0.250, AP50 0.500, 7.0 ± 0.2 ms" in text
    assert "4/8 trials; best mAP 0.250, hypervolume 1.31 times that of the 3 starting detectors, about " in text
    assert "trial 4: fail: loss became nan" in text


def test_quiet_output_has_problems_only() -> None:
    text, _ = show(MESSAGES, quiet=True)
    assert text.splitlines() == [
        "trial 2 was interrupted and is back in the queue",
        "trial 4: fail: loss became nan",
    ]


def test_the_live_view_has_a_row_per_worker_with_its_epochs_and_loss() -> None:
    _, progress = show(MESSAGES[:9], terminal=True)
    output = io.StringIO()
    Console(file=output, width=120).print(progress.view())
    rows = output.getvalue().splitlines()
    assert [row.split()[:4] for row in rows[:2]] == [["worker", "0", "trial", "3"], ["worker", "1", "trial", "4"]]
    assert " 3/4 █▃▁ 0.500 96x72 ResNet18 RetinaNet" in " ".join(rows[0].split())
    assert " 3/4 ▁ 0.750 96x72 ResNet18 RetinaNet" in " ".join(rows[1].split())
    assert rows[2].split()[0] == "trials"
    assert "3/8" in rows[2]


def test_the_live_view_shows_which_workers_wait() -> None:
    _, progress = show(MESSAGES, terminal=True)
    output = io.StringIO()
    Console(file=output, width=120).print(progress.view())
    assert output.getvalue().splitlines()[0].split()[:3] == ["worker", "0", "waits"]
    assert "5/8 best mAP 0.250" in " ".join(output.getvalue().split())


def test_a_study_is_read_as_far_as_it_is_and_as_it_was_where_the_database_fails(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/tiny.db")
    search = StructuralSearch(load_recipe(str(tiny_recipe)))
    reader = StudyReader(storage, [search])
    # No worker has created the study yet.
    assert reader.read("structural") == StudyState()
    study = open_study(storage, search)
    study.add_trial(create_trial(values=[0.3, 20.0], user_attrs={"architecture": search.recipe.structural.seeds[0]}))
    state = reader.read("structural")
    assert state == StudyState(1, "1.00 times that of the starting detector")
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE trials RENAME TO lost")
    assert reader.read("structural") == state
