"""Candidates: which architectures of stage one stage two refines (SM-NAS, section 4.1.1)."""

from collections.abc import Sequence

import numpy as np
import optuna
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.recipe import Recipe
from smnas_optuna.samplers.partial_order_pruning.dominance import non_dominated
from smnas_optuna.search.modular import Candidate, ModularSearch, recorded_candidates
from smnas_optuna.search.structural import StructuralSearch


def modular_searches(storage: RDBStorage, recipe: Recipe, trials: Sequence[int] | None = None) -> list[ModularSearch]:
    """Return a search of stage two for each candidate.

    Candidates that have a study keep it and their number. Without ``trials`` the recipe's number of candidates is
    filled up from the front of stage one.

    Args:
        storage: Where the studies are.
        recipe: With a stage two.
        trials: Numbers of stage one's trials to refine, instead of some of its front.

    Raises:
        UserError: Stage one has no such completed trial, or none at all.
    """
    assert recipe.modular is not None
    present = recorded_candidates(storage, recipe)
    name = StructuralSearch(recipe).study_name
    if trials is None and len(present) >= recipe.modular.candidates:
        return [ModularSearch(recipe, candidate) for candidate in present[: recipe.modular.candidates]]
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
        raise UserError(f"study {name!r}: has no completed trial to refine; --stage all runs both stages")
    return [ModularSearch(recipe, candidate) for candidate in chosen]


def pick(study: optuna.Study, count: int) -> list[FrozenTrial]:
    """Pick trials from a study's Pareto front, spread over the cost, the cheapest first.

    Accuracy is the first objective that is maximised, cost the first that is minimised; without both, the best trials
    come first. What is picked is distinct and non-dominated in these two, whatever further objectives there are: the
    front's two ends and, between them, the trials that together dominate the largest area. The area's reference point
    has the accuracy of the cheapest end and the cost of the dearest. A single one is the most accurate.

    Args:
        study: Stage one's.
        count: How many at most, from 1.
    """
    trials = sorted(study.best_trials, key=lambda trial: trial.number)
    directions = study.directions
    if len(set(directions)) < 2:
        return trials[:count]
    accuracy = directions.index(StudyDirection.MAXIMIZE)
    cost = directions.index(StudyDirection.MINIMIZE)
    losses = np.array([(trial.values[cost], -trial.values[accuracy]) for trial in trials]).reshape(-1, 2)
    # Of equal ones the first.
    best = {tuple(losses[row]): trials[row] for row in reversed(np.flatnonzero(non_dominated(losses)))}
    front = [best[point] for point in sorted(best)]
    if count == 1 or len(front) <= count:
        return front[-count:]
    # By the last trial picked, the largest area that so many trials dominate, and which they are.
    areas = {0: (0.0, [0])}
    for _ in range(count - 2):
        longer: dict[int, tuple[float, list[int]]] = {}
        for index in range(1, len(front) - 1):
            width = front[-1].values[cost] - front[index].values[cost]
            for last, (area, picked) in areas.items():
                grown = area + width * (front[index].values[accuracy] - front[last].values[accuracy])
                if last < index and grown > longer.get(index, (-1.0, []))[0]:
                    longer[index] = grown, [*picked, index]
        areas = longer
    _, picked = max(areas.values())
    return [front[index] for index in (*picked, len(front) - 1)]


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
