"""Which architectures stage two takes on: the hand-over between the stages (SM-NAS, section 4.1.1)."""

from collections.abc import Sequence

import optuna
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.architecture import Architecture
from smnas_optuna.errors import UserError
from smnas_optuna.recipe import Recipe
from smnas_optuna.search import Candidate, Search
from smnas_optuna.study import candidates_of


def modular_searches(storage: RDBStorage, recipe: Recipe, trials: Sequence[int] | None = None) -> list[Search]:
    """Return a search of stage two for each candidate.

    Candidates that have a study keep it and their number. Without ``trials`` the recipe's number of candidates is
    filled up from the front of stage one.

    Args:
        storage: Where the studies are.
        recipe: With a stage two.
        trials: Numbers of stage one's trials to take on, instead of what the front suggests.

    Raises:
        UserError: Stage one has no such completed trial, or none at all.
    """
    assert recipe.modular is not None
    present = candidates_of(storage, recipe)
    name = Search(recipe).study_name
    if trials is None and len(present) >= recipe.modular.candidates:
        return [Search(recipe, candidate) for candidate in present[: recipe.modular.candidates]]
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        raise UserError(f"study {name!r}: not in the database; expected stage one's, --stage all runs both") from None
    known = {candidate.trial: candidate for candidate in present}
    if trials is None:
        wanted = [trial for trial in pick(study, recipe.modular.candidates) if trial.number not in known]
        chosen = [*present, *_number(wanted[: recipe.modular.candidates - len(present)], name, len(present))]
    else:
        wanted = [_completed(study, number) for number in dict.fromkeys(trials)]
        fresh = _number([trial for trial in wanted if trial.number not in known], name, len(present))
        known |= {candidate.trial: candidate for candidate in fresh}
        chosen = [known[trial.number] for trial in wanted]
    if not chosen:
        raise UserError(f"study {name!r}: has no completed trial to take on; --stage all runs both stages")
    return [Search(recipe, candidate) for candidate in chosen]


def pick(study: optuna.Study, count: int) -> list[FrozenTrial]:
    """Pick trials from a study's Pareto front, spread over the cost, the cheapest first.

    They are the front's two ends and, between them, those whose loss would cost the front most hypervolume. Accuracy is
    the first objective that is maximised, cost the first that is minimised; without both, the best come first.

    Args:
        study: Stage one's.
        count: How many at most.
    """
    front = sorted(study.best_trials, key=lambda trial: trial.number)
    directions = study.directions
    if not front or len(set(directions)) < 2:
        return front[:count]
    accuracy = directions.index(StudyDirection.MAXIMIZE)
    cost = directions.index(StudyDirection.MINIMIZE)
    front.sort(key=lambda trial: (trial.values[cost], -trial.values[accuracy]))
    # Equal points are one candidate, and with a third objective some points may be dominated in these two.
    inner = range(1, len(front) - 1)

    def contribution(index: int) -> float:
        point, cheaper, dearer = (front[i].values for i in (index, index - 1, index + 1))
        return float(max(0.0, dearer[cost] - point[cost]) * max(0.0, point[accuracy] - cheaper[accuracy]))

    ends = [0, len(front) - 1] if count > 1 else [len(front) - 1]
    best = sorted(inner, key=contribution, reverse=True)[: max(0, count - len(ends))]
    return [front[index] for index in sorted({*ends, *best})]


def _number(trials: Sequence[FrozenTrial], study_name: str, start: int) -> list[Candidate]:
    return [
        Candidate(number, study_name, trial.number, Architecture.parse(trial.user_attrs["architecture"]))
        for number, trial in enumerate(trials, start)
    ]


def _completed(study: optuna.Study, number: int) -> FrozenTrial:
    trials = study.get_trials(deepcopy=False)
    if number >= len(trials) or trials[number].state != TrialState.COMPLETE:
        there = ", ".join(str(trial.number) for trial in trials if trial.state == TrialState.COMPLETE) or "none"
        raise UserError(f"--candidates: trial {number} of {study.study_name!r} is not completed; those are {there}")
    return trials[number]
