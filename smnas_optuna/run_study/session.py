"""Session: one call of ``run_study`` with everything that its stages share."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from rich.console import Console

from smnas_optuna.data.datasets import CheckedDataset
from smnas_optuna.detector.pretrained import Pretrained
from smnas_optuna.execution.interruption import Interruption
from smnas_optuna.execution.worker import Assignment, Finished, Message, SearchAssignment
from smnas_optuna.reporting.dashboard import DashboardUpdater, describe_trial
from smnas_optuna.reporting.page import write_report
from smnas_optuna.reporting.progress import SearchProgress, StudyReader, sum_of
from smnas_optuna.reporting.summary import summary_of
from smnas_optuna.run_study.command import Options
from smnas_optuna.search.search import Search
from smnas_optuna.search.studies import present_searches
from smnas_optuna.study.budget import Deadline, RunningTime, seconds_spent

Launch = Callable[[Sequence[Assignment], Callable[[Message], None], Callable[[str], None], Interruption], None]


@dataclass(frozen=True)
class Workers:
    """The workers of a run.

    Args:
        launch: Starts them.
        gpus: For each worker the names of its GPUs, or None to use those that are visible to it.
        sharing: Number of workers that share the memory of a device; None for those that have the same GPUs.
        per_machine: Number of workers on a machine.
    """

    launch: Launch
    gpus: list[tuple[str, ...] | None]
    sharing: int | None
    per_machine: int


@dataclass(frozen=True)
class Session:
    """One call of the command.

    Args:
        options: What the user has asked for.
        out: Where to print.
        folder: Folder for what the search writes.
        database: Where the studies are.
        url: URL of the database, with its password.
        dataset: The checked data set.
        workers: The workers.
    """

    options: Options
    out: Console
    folder: Path
    database: RDBStorage
    url: str
    dataset: CheckedDataset
    workers: Workers

    def seconds_spent(self, searches: Sequence[Search] = ()) -> float:
        """Return how long the recipe's studies, and those of other searches, have been searched by now."""
        return seconds_spent(self.database, self._names(searches), self.options.started)

    def running_time(self, searches: Sequence[Search] = ()) -> RunningTime:
        """Return a context manager in which the time counts as spent on searches, and on all that are there."""
        return RunningTime(self.database, self._names(searches), self.options.started, self.options.budget)

    def _names(self, searches: Sequence[Search]) -> set[str]:
        present = present_searches(self.database, self.options.recipe)
        return {each.study_name for each in (*searches, *present)}

    def run(
        self,
        searches: Sequence[Search],
        deadline: Deadline | None = None,
        *,
        n_trials: int | None = None,
        dataset: CheckedDataset | None = None,
        trained: Pretrained | None = None,
    ) -> None:
        """Let workers search some studies side by side.

        Args:
            searches: What to search.
            deadline: When it has to end; None for when each study has its trials.
            n_trials: Trials that each study shall reach; None for the search's number.
            dataset: Instead of the session's.
            trained: Weights of a detector that trials start from; None for pre-trained ones.

        Raises:
            SearchStopped: A study could not reach its number of trials.
            KeyboardInterrupt: The user has ended it.
        """
        options = self.options
        assignments = [
            SearchAssignment(
                worker,
                tuple(searches),
                self.url,
                dataset or self.dataset,
                self.folder,
                describe_trial,
                n_trials,
                deadline=deadline,
                # A list needs no sampler.
                sampler=None if searches[0].origins else options.sampler,
                seed=options.seed,
                gpus=own,
                sharing=self.workers.sharing or self.workers.gpus.count(own),
                workers=self.workers.per_machine,
                mixed_devices=options.mixed_devices,
                weights_folder=options.weights_folder,
                trained=trained,
            )
            for worker, own in enumerate(self.workers.gpus)
        ]
        with self.running_time(searches):
            self._run(assignments)

    def _run(self, assignments: Sequence[SearchAssignment]) -> None:
        """Let workers run assignments, and show their progress."""
        out, quiet = self.out, self.options.quiet
        searches, n_trials, deadline = assignments[0].searches, assignments[0].n_trials, assignments[0].deadline
        totals = {search.path: n_trials or (search.trials if deadline is None else None) for search in searches}
        studies = StudyReader(self.database, searches)
        before = {search.path: studies.done(search.path) for search in searches}
        for search in () if quiet else searches:
            known, total = before[search.path], totals[search.path]
            of_all = f"{known} of {total}" if total else f"{known}"
            spent = f"; {deadline} spent" if deadline else ""
            self.say(f"{search.title}: {of_all} trials done{spent}")
        dashboard = DashboardUpdater(self.database, searches)
        try:
            with SearchProgress(out, before, totals, studies.read, deadline, quiet=quiet) as progress:

                def hear(message: Message) -> None:
                    progress.handle(message)
                    if isinstance(message, Finished):
                        dashboard.refresh(message.study)

                interruption = Interruption()
                with interruption.listen(signal.SIGINT, signal.SIGTERM):
                    if deadline is None or deadline.left > 0 or not any(before.values()):
                        self.workers.launch(assignments, hear, progress.warn, interruption)
        except KeyboardInterrupt:
            done = sum(studies.done(search.path) for search in searches)
            all_trials = sum_of(totals.values())
            of_all = f"{done} of {all_trials}" if all_trials else f"{done}"
            out.print(f"interrupted with {of_all} trials done, all kept; the same command goes on")
            raise
        finally:
            dashboard.refresh_all()

    def summarise(self, searches: Sequence[Search]) -> None:
        """Print the results of studies, and write their reports."""
        for search in searches:
            study = optuna.load_study(study_name=search.study_name, storage=self.database)
            for part in () if self.options.quiet else summary_of(search, study):
                self.out.print(part, soft_wrap=isinstance(part, str))
            self.report(study)

    def say(self, line: str) -> None:
        """Print a line, however long it is."""
        self.out.print(line, soft_wrap=True)

    def report(self, study: optuna.Study) -> None:
        """Write the report of a study, and print where it is."""
        self.say(f"report: {write_report(study, self.folder)}")
