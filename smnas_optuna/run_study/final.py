"""What follows stage one: its recommendation, further trainings of what it recommends, and the detector to deploy."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.data.datasets import CheckedDataset, open_dataset
from smnas_optuna.errors import UserError
from smnas_optuna.execution.loop import SearchStopped
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.recipe import Recipe
from smnas_optuna.recipe.settings import Constraints, FinalTraining, FolderDataset
from smnas_optuna.reporting.page import write_report
from smnas_optuna.reporting.recommendation import Recommendation, recommendation_of
from smnas_optuna.run_study.best import WRITING_SECONDS, save_best, weights_of
from smnas_optuna.run_study.session import Session
from smnas_optuna.search.final import ENDS, REPEATS, FinalSearch, parsed_name, recorded_finals
from smnas_optuna.search.listed import Listed
from smnas_optuna.search.structural import StructuralSearch
from smnas_optuna.search.studies import agree
from smnas_optuna.study.budget import duration_text
from smnas_optuna.study.trial_outcome import evaluated_trials

# Part of what is left of the budget that trainings with other seeds may take.
_REPEATS_SHARE = 1 / 3
# Seconds for the start of a training.
_START_SECONDS = 12.0
# Part of what is left by which a prediction of the training time may be wrong.
_MARGIN = 0.05
# A training that starts from a trial's weights improves them little if it is shorter than this part of the trial.
_LEAST_PART = 0.5
# A detector is trained once more only if that takes so many times as long as the last time.
_MUCH_LONGER = 1.5


def follow(session: Session) -> None:
    """Say what stage one recommends, train that with other seeds and to the end, and save it as ``best/``.

    Without a section ``final`` in the recipe, or with ``--no-final``, only say it.
    """
    final = session.options.final
    study = optuna.load_study(study_name=StructuralSearch(session.options.recipe).study_name, storage=session.database)
    try:
        recommendation = recommendation_of(study)
    except UserError as error:
        if final is not None:
            session.say(f"nothing to train to the end: {error}")
        return
    if final is None:
        _say(session, recommendation)
        return
    with session.running_time():
        training = _Finish(session, study, final)
        training.repeat(recommendation.picks)
        training.train(recommendation_of(study).recommended)
        recommendation = recommendation_of(study)
        # The answer comes before the folder is written, which may fail.
        write_report(study, session.folder)
        _say(session, recommendation)
        training.save(recommendation)


def _say(session: Session, recommendation: Recommendation) -> None:
    if session.options.quiet:
        return
    session.say(f"what {recommendation.results.name} recommends:")
    for sentence in recommendation.sentences:
        session.say(sentence)


@dataclass(frozen=True)
class _Finish:
    """Trains detectors of stage one further.

    Args:
        session: The call of the command.
        study: Stage one's study.
        final: The recipe's section.
    """

    session: Session
    study: optuna.Study
    final: FinalTraining

    def repeat(self, numbers: Sequence[int]) -> None:
        """Train trials' detectors with other seeds, in as many rounds as the time allows."""
        started, usable = time.monotonic(), self._seconds_left() * _REPEATS_SHARE
        training = self._recipe.structural.training
        trials = list(map(self._trial, numbers))
        listed = tuple(map(self._listed, trials))
        for number in range(1, self.final.repeats + 1):
            search = FinalSearch(self._recipe, listed, f"{REPEATS}{number}", training.epochs, training.seed + number)
            trained = {trial.user_attrs["architecture"] for trial in self._evaluated(search)}
            missing = [_seconds_of(each) for each in trials if each.user_attrs["architecture"] not in trained]
            if not missing:
                continue
            seconds = max(max(missing), sum(missing) / len(self.session.workers.gpus))
            left = usable - (time.monotonic() - started)
            if seconds > left:
                self.session.say(
                    f"not trained with {'further' if number > 1 else 'other'} seeds, which would take about "
                    f"{duration_text(seconds)}: {duration_text(left)} are left for it"
                )
                return
            if not self._run(agree(self.session.database, search)):
                return

    def train(self, number: int) -> None:
        """Train a trial's detector as long as the time allows, or bring a training that was interrupted to its end."""
        weights = weights_of(self.session, self.study, self._trial(number))
        finals = self._finals(number)
        interrupted = [each for each in finals if not self._evaluated(each)]
        search = interrupted[-1] if interrupted else self._longest(number, finals, from_trial=weights is not None)
        if search is not None:
            search = agree(self.session.database, search)
            dataset = self._dataset(all_images=search.all_images)
            self._run(search, dataset=dataset, trained=weights if search.starts_from_trial else None)

    def save(self, recommendation: Recommendation) -> None:
        """Save the recommended detector."""
        number = recommendation.recommended
        trained = [each for each in self._finals(number) if self._completed(each)]
        longest = max(trained, key=lambda each: each.epochs, default=None)
        images = self._dataset(all_images=longest is not None and longest.all_images).train_images
        study = None if longest is None else self._load(longest)
        save_best(self.session, self.study, number, recommendation.accuracy, study, images)

    def _longest(self, number: int, finals: Sequence[FinalSearch], *, from_trial: bool) -> FinalSearch | None:
        """Return the longest training of a trial's detector that there is time for; None if it is not worth it.

        It sees all training images, unless the search has left out so many that they cannot be seen in the time.
        """
        trial, left = self._trial(number), self._seconds_left()
        epochs, images = self._recipe.structural.training.epochs, max(1, self.session.dataset.train_images)
        limited = isinstance(self._recipe.dataset, FolderDataset) and self._recipe.dataset.train_images is not None
        others = _seconds_of(trial) - trial.user_attrs["train_seconds"]
        saving = WRITING_SECONDS + trial.user_attrs["evaluation_seconds"]
        for all_images in (True, False) if limited else (False,):
            more = self._dataset(all_images=all_images).train_images / images
            each = more * trial.user_attrs["train_seconds"] / epochs
            affordable = min(self.final.epochs, int(((1 - _MARGIN) * left - others - saving) / each))
            if affordable >= 1 and affordable * more >= _LEAST_PART * epochs:
                break
        else:
            if not finals:
                self.session.say(f"not trained longer than in the search: {duration_text(left)} are left")
            return None
        if any(affordable < _MUCH_LONGER * former.epochs for former in finals):
            return None
        again = f"-{len(finals) + 1}" if finals else ""
        return FinalSearch(
            self._recipe,
            (self._listed(trial),),
            f"{ENDS}{number}{again}",
            affordable,
            self._recipe.structural.training.seed,
            all_images=all_images,
            starts_from_trial=from_trial,
        )

    def _seconds_left(self) -> float:
        """Return how much of the budget is left; without one, of what would be kept of it after such a search."""
        spent, budget = self.session.seconds_spent(), self.session.options.budget
        return (spent / (1 - self.final.share) if budget is None else budget) - spent

    @property
    def _recipe(self) -> Recipe:
        """The recipe without constraints: what the search has chosen keeps to them, but for noise."""
        return self.session.options.recipe.model_copy(update={"constraints": Constraints()})

    def _finals(self, number: int) -> list[FinalSearch]:
        """Return the trainings of a trial's detector to the end, in the order of their names."""
        finals = recorded_finals(self.session.database, self._recipe)
        return [each for each in finals if parsed_name(each.name) == (ENDS, number)]

    def _trial(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def _listed(self, trial: FrozenTrial) -> Listed:
        architecture = Architecture.parse(trial.user_attrs["architecture"])
        return Listed(architecture, f"{self.study.study_name} trial {trial.number}")

    def _load(self, search: FinalSearch) -> optuna.Study:
        return optuna.load_study(study_name=search.study_name, storage=self.session.database)

    def _evaluated(self, search: FinalSearch) -> list[FrozenTrial]:
        """Return the trials of a study that have come to an end, whichever it is."""
        if search.study_name not in optuna.get_all_study_names(self.session.database):
            return []
        return evaluated_trials(self._load(search))

    def _completed(self, search: FinalSearch) -> list[FrozenTrial]:
        return [trial for trial in self._evaluated(search) if trial.state == TrialState.COMPLETE]

    def _dataset(self, *, all_images: bool) -> CheckedDataset:
        return self._whole_dataset if all_images else self.session.dataset

    @cached_property
    def _whole_dataset(self) -> CheckedDataset:
        """The data set with the training images that the search leaves out."""
        return open_dataset(self._recipe.dataset.model_copy(update={"train_images": None}))

    def _run(self, search: FinalSearch, **options: Any) -> bool:
        """Train what a study lists, and tell whether that succeeded; what the search has found is not to be lost."""
        try:
            self.session.run([search], **options)
        except SearchStopped as stopped:
            self.session.say(f"{search.study_name}: {stopped}; logs are in {self.session.folder}")
            return False
        return True


def _seconds_of(trial: FrozenTrial) -> float:
    """Return how long a completed trial takes if it is not interrupted."""
    parts = ("train_seconds", "evaluation_seconds", "timing_seconds")
    return _START_SECONDS + sum(float(trial.user_attrs[part]) for part in parts)
