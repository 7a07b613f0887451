import multiprocessing
import time
from collections import Counter
from pathlib import Path

import optuna

from .. import PartialOrderPruningSampler
from .problems import Grid, create_study

N_WORKERS, N_TRIALS = 4, 40


def work(storage: str, seed: int) -> None:
    grid = Grid.additive(0, (3, 4, 4, 4))
    sampler = PartialOrderPruningSampler(grid.search_space, grid.order, grid.known(), seed=seed)
    study = create_study(sampler, storage=storage, study_name="shared", load_if_exists=True)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        key = grid.search_space(trial)
        # As long as a training, so that several run at once.
        time.sleep(0.05)
        return grid.values(key)

    study.optimize(objective, callbacks=[optuna.study.MaxTrialsCallback(N_TRIALS)])


def test_workers_of_one_study_train_no_architecture_twice(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    create_study(PartialOrderPruningSampler(), storage=storage, study_name="shared")
    context = multiprocessing.get_context("spawn")
    # All have the same seed, so that they select different architectures by design, not by chance.
    workers = [context.Process(target=work, args=(storage, 0)) for _ in range(N_WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    study = optuna.load_study(storage=storage, study_name="shared")
    assert len(study.trials) >= N_TRIALS
    assert max(Counter(str(trial.params) for trial in study.trials).values()) == 1
