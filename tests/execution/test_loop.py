"""A worker's loop: what it reads, and how two workers agree though a restart of the server has ended a lock."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from smnas_optuna.execution.interruption import Interruption
from smnas_optuna.execution.loop import Run, search_all
from smnas_optuna.search.objective import TrialContext
from smnas_optuna.study.storage import open_storage
from tests.servers import PostgreSQL


class Silent:
    """Is told what happens, and does nothing."""

    def finished(self, run: Run, trial: Any) -> None: ...

    def requeued(self, run: Run, number: int) -> None: ...

    def lost(self, run: Run, number: int) -> None: ...


def open_run(url: str, objective: Callable[[optuna.Trial, TrialContext], tuple[float, ...]], name: str = "pair") -> Run:
    storage = open_storage(url, lease_seconds=1.0)
    study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
    study.sampler = optuna.samplers.RandomSampler()
    return Run(study, storage, objective, total=2, size=9)


def propose(trial: optuna.Trial, context: TrialContext) -> tuple[float, ...]:
    trial.set_user_attr("architecture", str(trial.suggest_int("depth", 1, 9)))
    context.release_claim()
    return (0.0,)


def lose_lock(run: Run, url: str) -> None:
    """End the connection that holds a run's lock, as a restart of the server does."""
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        held = "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND granted"
        assert connection.execute(sqlalchemy.text(held)).scalar_one() == 1
    engine.dispose()


@pytest.mark.parametrize("is_written", [True, False], ids=["after", "before"])
def test_of_two_that_propose_the_same_one_goes_on(postgresql: PostgreSQL, is_written: bool) -> None:
    url = postgresql.create_database()

    def interrupted(trial: optuna.Trial, context: TrialContext) -> tuple[float, ...]:
        depth = trial.suggest_int("depth", 1, 9)
        if is_written:
            trial.set_user_attr("architecture", str(depth))
        lose_lock(first, url)
        second.study.enqueue_trial({"depth": 5})
        assert second.advance(Silent(), Interruption())
        trial.set_user_attr("architecture", str(depth))
        context.release_claim()
        return (1.0,)

    first, second = open_run(url, interrupted), open_run(url, propose)
    first.study.enqueue_trial({"depth": 5})
    assert first.advance(Silent(), Interruption())
    trials = first.study.get_trials()
    states = [trial.state for trial in trials]
    goes_on, yields = (0, 1) if is_written else (1, 0)
    assert states[goes_on] == TrialState.COMPLETE
    assert states[yields] == TrialState.PRUNED
    assert trials[yields].user_attrs["reason"].startswith(f"duplicate: trial {goes_on} ")
    # Nobody holds the lock any more, and the study goes on.
    second.study.enqueue_trial({"depth": 6})
    assert second.advance(Silent(), Interruption())
    assert first.look().done == 2


def test_what_nobody_else_has_goes_on_although_the_lock_was_lost(postgresql: PostgreSQL) -> None:
    url = postgresql.create_database()

    def interrupted(trial: optuna.Trial, context: TrialContext) -> tuple[float, ...]:
        lose_lock(run, url)
        return propose(trial, context)

    run = open_run(url, interrupted)
    assert run.advance(Silent(), Interruption())
    assert run.look().done == 1


def test_a_worker_whose_trial_was_taken_over_while_it_proposed_goes_on(url: str) -> None:
    class Proposing(optuna.samplers.RandomSampler):
        """Another worker takes the first trial over while this one still proposes it."""

        def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            if trial.number == 0:
                assert run.storage.take_over(trial._trial_id, None, {"outcome": "interrupted", "taken_over_by": "x"})
                study._storage.set_trial_system_attr(trial._trial_id, "proposal", 1)

    run = open_run(url, propose)
    run.study.sampler = Proposing(seed=0)
    assert run.advance(Silent(), Interruption())
    assert run.advance(Silent(), Interruption())
    assert run.look().done == 1
    assert [trial.state for trial in run.study.trials] == [TrialState.FAIL, TrialState.COMPLETE]


def test_an_error_of_a_sampler_is_raised_though_the_trial_before_was_taken_over(url: str) -> None:
    class Failing(optuna.samplers.RandomSampler):
        def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            if trial.number == 1:
                raise RuntimeError("a bug")

    def taken_over(trial: optuna.Trial, context: TrialContext) -> tuple[float, ...]:
        last = run.storage.last_renewal(trial._trial_id)
        assert run.storage.take_over(trial._trial_id, last, {"outcome": "interrupted", "taken_over_by": "x"})
        return propose(trial, context)

    run = open_run(url, taken_over)
    run.study.sampler = Failing(seed=0)
    assert run.advance(Silent(), Interruption())
    with pytest.raises(RuntimeError, match="a bug"):
        run.advance(Silent(), Interruption())


def test_an_interrupted_trial_is_repeated_before_the_rest_of_the_queue(url: str) -> None:
    def interrupted_once(trial: optuna.Trial, context: TrialContext) -> tuple[float, ...]:
        values = propose(trial, context)
        if trial.number == 0:
            raise KeyboardInterrupt
        return values

    run = open_run(url, interrupted_once)
    for depth in (5, 6):
        run.study.enqueue_trial({"depth": depth})
    with pytest.raises(KeyboardInterrupt):
        run.advance(Silent(), Interruption())
    assert run.advance(Silent(), Interruption())
    trials = run.study.trials
    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.WAITING, TrialState.COMPLETE]
    assert trials[2].params == {"depth": 5}


def test_an_objective_that_is_not_a_number_fails_and_is_not_repeated(url: str) -> None:
    def diverge(trial: optuna.Trial, context: TrialContext) -> tuple[float, ...]:
        propose(trial, context)
        return (float("nan"),)

    run = open_run(url, diverge)
    run.study.sampler = optuna.samplers.RandomSampler(seed=0)
    assert run.advance(Silent(), Interruption())
    (trial,) = run.study.trials
    assert trial.user_attrs["outcome"] == "diverged"
    assert run.look().done == 1


def test_a_worker_reads_the_trials_of_a_study_once_for_each_trial_that_it_runs(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, left, right = (open_run(url, propose, name) for name in ("single", "left", "right"))
    for each in (run, left, right):
        for depth in (3, 5):
            each.study.enqueue_trial({"depth": depth})
    reads = Counter[str]()
    read_trials = optuna.Study.get_trials

    def counted(study: optuna.Study, *args: Any, **others: Any) -> list[optuna.trial.FrozenTrial]:
        reads[study.study_name] += 1
        return read_trials(study, *args, **others)

    monkeypatch.setattr(optuna.Study, "get_trials", counted)
    for total in (1, 2):
        assert run.advance(Silent(), Interruption())
        assert reads == {"single": total}
    # That nothing is left is read once more, and how the study has ended.
    search_all([run], Silent(), Interruption())
    assert reads == {"single": 4}
    # Of several studies each is read before each trial, too, to choose the one that is furthest behind.
    reads.clear()
    search_all([left, right], Silent(), Interruption())
    assert reads == {"left": 2 + 4 + 1, "right": 2 + 4 + 2}
