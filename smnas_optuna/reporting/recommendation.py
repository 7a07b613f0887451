"""Which detector of a search to deploy, in sentences: the most accurate, one that is faster, and the front's knee."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from scipy.special import stdtr

from smnas_optuna.errors import UserError
from smnas_optuna.reporting.quantity import MISSING
from smnas_optuna.reporting.study_results import Objective, StudyResults, accuracy_and_costs, by_device, results_of
from smnas_optuna.search.constraints import limits_text, nearest_violation
from smnas_optuna.search.final import REPEATS, final_names, load_final, parsed_name
from smnas_optuna.study.optuna_internals import storage_of

# Difference between accuracies that users hardly notice: one point of mAP.
_POINT: Final = 0.01
_ROUNDING: Final = 1e-9
_FEWEST_FOR_A_KNEE: Final = 3


@dataclass(frozen=True, eq=False)
class Recommendation:
    """Detectors of a study to choose from.

    Args:
        results: The study.
        repeats: Accuracies of further trainings with other seeds, by the architecture's text.
        longer: Accuracies after the last longer training, by the number of the trial.

    Raises:
        UserError: No detector was trained, or none keeps to the constraints.
    """

    results: StudyResults
    repeats: Mapping[str, Sequence[float]]
    longer: Mapping[int, float]

    def __post_init__(self) -> None:
        if self._trials:
            return
        nearest = nearest_violation(self.results.trials)
        why = f"no detector keeps to the constraints; {nearest}" if nearest else "no detector is trained yet"
        raise UserError(f"study {self.results.name!r}: {why}")

    @property
    def recommended(self) -> int:
        """Number of the trial to deploy if nothing else matters: the cheapest pick that is as accurate as any.

        That is at most a point below the most accurate one, on average over all trainings. Of detectors that were
        trained with several seeds, others are not compared with them.
        """
        most = max(len(self._trainings(number)) for number in self.picks)
        compared = [number for number in self.picks if len(self._trainings(number)) == most]
        limit = min(map(self._mean_loss, compared)) + _POINT + _ROUNDING
        close = [number for number in compared if self._mean_loss(number) <= limit]
        return min(close, key=lambda number: (self._loss(self._cost, number), number))

    @cached_property
    def picks(self) -> list[int]:
        """Numbers of the trials to choose from, each once; the most accurate in the search comes first."""
        numbers = (self._best, self._close, self._knee)
        return list(dict.fromkeys(number for number in numbers if number is not None))

    @property
    def sentences(self) -> list[str]:
        """What to choose and why, one sentence each: the picks, how certain their order is, and the baselines."""
        recommended = (
            f"Trial {self.recommended} is recommended: of these, the {self._cheapest} within one point of the highest "
            f"{self.accuracy.quantity.title}{self._longer_text()}."
        )
        return [*self._picks_text(), self._certainty_text(), recommended, *self._baselines_text()]

    def _longer_text(self) -> str:
        accuracy = self.longer.get(self.recommended)
        if accuracy is None:
            return ""
        return f"; after longer training its {self.accuracy.quantity.title} is {self.accuracy.quantity.text(accuracy)}"

    @cached_property
    def accuracy(self) -> Objective:
        """The objective by which detectors are ranked, such as mAP."""
        return accuracy_and_costs(self.results.objectives)[0]

    @cached_property
    def _cost(self) -> Objective:
        costs = accuracy_and_costs(self.results.objectives)[1]
        times = [cost for cost in costs if cost.name == "latency_ms"]
        return (times or costs or [Objective("latency_ms", maximize=False)])[0]

    @property
    def _cheapest(self) -> str:
        return "fastest" if self._cost.name == "latency_ms" else f"lowest in {self._cost.quantity.title}"

    @cached_property
    def _trials(self) -> dict[int, dict[str, Any]]:
        """Trained detectors that keep to the constraints, by number, on the device that has timed most of them."""
        groups = by_device(
            self.results.finished[self.results.finished["is_feasible"].astype(bool)], self.results.metrics
        )
        return {int(trial["number"]): trial for trial in max(groups, key=len).to_dict("records")}  # type: ignore[misc]

    def _loss(self, objective: Objective, number: int) -> float:
        """Return the value of an objective such that lower is better."""
        return objective.sign * float(self._trials[number][objective.name])

    @cached_property
    def _best(self) -> int:
        """The most accurate in the search; of equal ones the cheapest."""
        return min(self._trials, key=lambda each: (self._loss(self.accuracy, each), self._loss(self._cost, each), each))

    @cached_property
    def _close(self) -> int | None:
        """The cheapest that is at most a point less accurate; None if that is the most accurate itself."""
        limit = self._loss(self.accuracy, self._best) + _POINT + _ROUNDING
        close = [number for number in self._trials if self._loss(self.accuracy, number) <= limit]
        cheapest = min(close, key=lambda number: (self._loss(self._cost, number), number != self._best))
        return None if cheapest == self._best else cheapest

    @cached_property
    def _knee(self) -> int | None:
        """The detector of the front that is furthest from the line between the front's ends (Das 1999)."""
        front = [int(number) for number in self.results.front["number"] if int(number) in self._trials]
        if len(front) < _FEWEST_FOR_A_KNEE:
            return None
        lost, paid = (
            _normalised([self._loss(each, number) for number in front]) for each in (self.accuracy, self._cost)
        )
        distances = 1.0 - lost - paid
        return front[int(np.argmax(distances))] if distances.max() > 0 else None

    def _mean_loss(self, number: int) -> float:
        return self.accuracy.sign * float(np.mean(self._trainings(number)))

    def _trainings(self, number: int) -> list[float]:
        """Return the accuracies of a detector over all its trainings, the search's first."""
        trial = self._trials[number]
        return [float(trial[self.accuracy.name]), *self.repeats.get(str(trial["architecture"]), ())]

    def _text(self, number: int) -> str:
        of_baseline = " (a baseline of this search)" if number in self._baselines else ""
        return f"{self._text_of(self._trials[number])}{of_baseline}"

    def _text_of(self, trial: Mapping[Any, Any]) -> str:
        accuracy, cost = self.accuracy, self._cost
        text = f"{accuracy.quantity.title} {accuracy.quantity.text_with_unit(trial[accuracy.name])}"
        amount = cost.quantity.text_with_unit(trial[cost.name])
        if amount != MISSING:
            text += f" at {amount}" if cost.name == "latency_ms" else f", {cost.quantity.title} {amount}"
        return f"{text}, {trial['architecture']}"

    def _picks_text(self) -> list[str]:
        search = self.results.search
        limits = limits_text(search.recipe.constraints) if search else ""
        lines = [
            f"Trial {self._best} is the most accurate{f' with {limits}' if limits else ''}: {self._text(self._best)}."
        ]
        if self._close is None:
            lines.append(f"It is also the {self._cheapest} within one point of that accuracy.")
        else:
            lines.append(
                f"Trial {self._close} is the {self._cheapest} within one point of that accuracy, "
                f"{self._saved(self._close)}: {self._text(self._close)}."
            )
        if self._knee is None:
            lines.append("The front has no knee: accuracy and cost rise together, or it has too few detectors.")
        elif self._knee in (self._best, self._close):
            lines.append(f"Trial {self._knee} is the knee of the front as well.")
        else:
            lines.append(
                f"Trial {self._knee} is the knee of the front, from which on accuracy costs more, "
                f"{self._saved(self._knee)}: {self._text(self._knee)}."
            )
        return lines

    def _saved(self, number: int) -> str:
        mine, best = (float(self._trials[each][self._cost.name]) for each in (number, self._best))
        part = f"at {mine / best:.0%}" if best else "at a part"
        return f"{part} of the {self._cost.quantity.title} of trial {self._best}"

    def _certainty_text(self) -> str:
        """Say how certain it is that the most accurate pick is more accurate than the others."""
        several = [number for number in self.picks if len(self._trainings(number)) > 1]
        if not several:
            return (
                f"How certain this order is cannot be said: each was trained once, and {self.accuracy.quantity.title} "
                "changes with the seed."
            )
        means = ", ".join(
            f"trial {number} has a mean of {np.mean(values):.3f} over {len(values)} trainings ({min(values):.3f} to "
            f"{max(values):.3f})"
            for number, values in ((number, self._trainings(number)) for number in several)
        )
        best = min(several, key=self._mean_loss)
        odds = "; ".join(
            f"trial {best} is more accurate than trial {number} with a probability of {self._odds(best, number):.0%}"
            for number in several
            if number != best
        )
        return f"With other seeds, {means}{f'; {odds}' if odds else ''}."

    def _odds(self, one: int, other: int) -> float:
        """Return the probability that the expected accuracy of one detector is higher, by Student's t.

        The variance between seeds is taken to be the same for all picks.
        """
        samples = [self._trainings(number) for number in self.picks]
        freedom = sum(len(values) - 1 for values in samples)
        squares = sum(float(np.var(values)) * len(values) for values in samples)
        mine, theirs = self._trainings(one), self._trainings(other)
        error = (squares / freedom * (1 / len(mine) + 1 / len(theirs))) ** 0.5
        difference = self._mean_loss(other) - self._mean_loss(one)
        if error == 0:
            return 0.5 if difference == 0 else 1.0
        return float(stdtr(freedom, difference / error))

    @cached_property
    def _baselines(self) -> dict[int, dict[str, Any]]:
        """Detectors with which the search is compared, trained in the same way, by the number of the trial."""
        search = self.results.search
        texts = {str(architecture) for architecture in search.references} if search else set()
        finished = self.results.finished
        trials = finished[finished["architecture"].isin(texts)].to_dict("records")
        return {int(trial["number"]): trial for trial in trials}  # type: ignore[misc]

    def _baselines_text(self) -> list[str]:
        search = self.results.search
        trained = {str(trial["architecture"]) for trial in self._baselines.values()}
        wanted = [str(architecture) for architecture in search.references] if search else []
        return [
            *(
                f"Baseline of the same run: trial {number}, {self._text_of(trial)}."
                for number, trial in self._baselines.items()
                if number not in self.picks
            ),
            *(f"Baseline that is not trained: {text}." for text in wanted if text not in trained),
        ]


def recommendation_of(study: optuna.Study) -> Recommendation:
    """Return what a study recommends; raises UserError, see :class:`Recommendation`."""
    return recommend_from(results_of(study), storage_of(study))


def recommend_from(results: StudyResults, storage: BaseStorage) -> Recommendation:
    """Return what a study recommends, with the trainings that followed it; raises UserError.

    Args:
        results: The study.
        storage: Where it and the studies that followed it are.
    """
    recipe, _, path = results.name.partition("/")
    accuracy, _ = accuracy_and_costs(results.objectives)
    repeats: dict[str, list[float]] = {}
    longer: dict[int, float] = {}
    for name in final_names(storage, recipe) if path == "structural" else ():
        kind, number = parsed_name(name)
        study = load_final(storage, recipe, name)
        for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
            value = float(trial.user_attrs[accuracy.name])
            if kind == REPEATS:
                repeats.setdefault(trial.user_attrs["architecture"], []).append(value)
            else:
                longer[number] = value
    return Recommendation(results, repeats, longer)


def _normalised(values: Sequence[float]) -> NDArray[np.float64]:
    """Scale values to 0 to 1."""
    array = np.array(values)
    span = np.ptp(array)
    return (array - array.min()) / span if span else np.zeros_like(array)
