"""Throughput of workers that share a study: parallel efficiency, SQL statements per trial, and start-up time.

Measured with a PostgreSQL server, worker processes, the default sampler, and an objective that only sleeps:

1. Parallel efficiency of 1, 2, 4, 8 and 16 workers, each with the same number of trials: the time that trials slept,
   divided by the workers' total time from the start of the first trial to the end of the last one.
2. SQL statements per trial of one worker, in a study of 200 trials, compared with ``study.optimize`` with Optuna's
   NSGA-II, the same objective and the same heartbeat interval.
3. Seconds until a new worker has opened a study with 5,000 finished trials, counted them, and got a proposal.

    python -m benchmarks.throughput [--workers 1 2 4 8 16] [--seconds 3] [--trials 20]
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from smnas_optuna.execution.interruption import Interruption
from smnas_optuna.execution.local import supervise
from smnas_optuna.execution.loop import Run
from smnas_optuna.search.objective import TrialContext
from smnas_optuna.study.storage import LEASE_SECONDS
from smnas_optuna.training.server import preload
from tests.execution.cheap import CheapAssignment, CheapObjective, create_cheap_study, suggest
from tests.servers import PostgreSQL


class Nobody:
    """Ignores the events of a run."""

    def finished(self, run: Run, trial: optuna.trial.FrozenTrial) -> None:
        """Do nothing."""

    def requeued(self, run: Run, number: int) -> None:
        """Do nothing."""

    def lost(self, run: Run, number: int) -> None:
        """Do nothing."""


def efficiency(url: str, workers: int, seconds: float, trials: int) -> tuple[float, float]:
    """Return the seconds that the workers took and their parallel efficiency."""
    create_cheap_study(url)
    total = workers * trials
    assignments = [CheapAssignment(n, url, total, seconds, lease_seconds=LEASE_SECONDS) for n in range(workers)]
    supervise(assignments, lambda message: None, print)
    done = optuna.load_study(study_name="cheap", storage=url).get_trials(states=[TrialState.COMPLETE])
    first = min(trial.datetime_start for trial in done if trial.datetime_start)
    last = max(trial.datetime_complete for trial in done if trial.datetime_complete)
    took = (last - first).total_seconds()
    return took, len(done) * seconds / (workers * took)


def count(engine: sqlalchemy.Engine, work: Callable[[], Any]) -> int:
    """Return how many SQL statements are sent while ``work`` runs."""
    sent = 0

    def add(*_: Any) -> None:
        nonlocal sent
        sent += 1

    sqlalchemy.event.listen(engine, "before_cursor_execute", add)
    try:
        work()
    finally:
        sqlalchemy.event.remove(engine, "before_cursor_execute", add)
    return sent


def our_statements(url: str, sampler: str, before: int, trials: int) -> float:
    """Return the number of SQL statements per trial of one of this package's workers."""
    create_cheap_study(url)
    assignment = CheapAssignment(0, url, before + trials, 0.0, sampler, LEASE_SECONDS)
    run = assignment.runs(lambda message: None)["cheap"]
    interruption = Interruption()
    for _ in range(before):
        run.advance(Nobody(), interruption)
    return count(run.storage.engine, lambda: [run.advance(Nobody(), interruption) for _ in range(trials)]) / trials


def optunas_statements(url: str, before: int, trials: int) -> float:
    """Return the number of SQL statements per trial of Optuna's ``study.optimize``."""
    storage = RDBStorage(url, heartbeat_interval=int(LEASE_SECONDS))
    study = optuna.create_study(
        storage=storage, directions=["maximize", "minimize"], sampler=optuna.samplers.NSGAIISampler(seed=0)
    )

    def evaluate(trial: optuna.Trial) -> tuple[float, float]:
        return CheapObjective(0.0)(trial, TrialContext((), lambda: None, (), lambda: None))

    study.optimize(evaluate, n_trials=before)
    return count(storage.engine, lambda: study.optimize(evaluate, n_trials=trials)) / trials


def start(url: str, trials: int) -> float:
    """Return the seconds that a new worker needs for its first proposal in a study with many trials."""
    create_cheap_study(url)
    study = optuna.load_study(study_name="cheap", storage=url)
    random = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=0))
    random.optimize(
        lambda trial: CheapObjective(0.0)(trial, TrialContext((), lambda: None, (), lambda: None)), n_trials=trials
    )
    study.add_trials(
        create_trial(
            params=trial.params, distributions=trial.distributions, values=trial.values, user_attrs=trial.user_attrs
        )
        for trial in random.trials
    )
    started = time.perf_counter()
    run = CheapAssignment(0, url, trials + 1, 0.0).runs(lambda message: None)["cheap"]
    run.look()
    suggest(run.study.ask())
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds that a trial sleeps")
    parser.add_argument("--trials", type=int, default=20, help="trials per worker")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    preload()
    server = PostgreSQL()
    try:
        for workers in arguments.workers:
            took, share = efficiency(server.create_database(), workers, arguments.seconds, arguments.trials)
            print(
                f"{workers:3} workers, {workers * arguments.trials:4} trials: {took:6.1f} s, {share:.3f}",
                flush=True,
            )
        for name, sent in {
            "run_study with pop": our_statements(server.create_database(), "pop", 200, 50),
            "run_study with nsga2": our_statements(server.create_database(), "nsga2", 200, 50),
            "Optuna with NSGA-II": optunas_statements(server.create_database(), 200, 50),
        }.items():
            print(f"{name:22} {sent:6.1f} SQL statements per trial", flush=True)
        print(f"first proposal in a study of 5,000 trials: {start(server.create_database(), 5000):.2f} s")
    finally:
        server.close()


if __name__ == "__main__":
    main()
