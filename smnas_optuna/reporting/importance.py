"""Importance of a detector's modules for the objectives."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import MeanDecreaseImpurityImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import create_trial

from smnas_optuna.reporting.quantity import quantity_of
from smnas_optuna.reporting.study_results import PARTS, StudyResults, by_device, natural_order, study_in_memory
from smnas_optuna.reporting.trial_table import PART_TITLES

_FEWEST_FOR_IMPORTANCE: Final = 10


@dataclass(frozen=True, eq=False)
class ModuleImportances:
    """Importance of each module of a detector for each objective.

    Args:
        shares: Share of the objective's variation that the module explains, with a row per module (``input_size``,
            ``backbone``, ``neck``, ``rpn``, ``head``) and a column per objective. Columns add up to 1. NaN for modules
            that were not compared.
        remarks: Sentences that say what is missing, and why.
    """

    shares: pd.DataFrame
    remarks: tuple[str, ...]


def module_importances(results: StudyResults) -> ModuleImportances:
    """Return the share of each objective's variation among the finished trials that each module explains.

    The shares are Optuna's mean decrease in impurity: by how much a random forest reduces the variation when it splits
    trials by a module. The parameters of a study are conditional, and several of them make up a module; therefore the
    forest gets the five modules of each architecture as categorical parameters. Optuna's other evaluators do not fit:
    fANOVA enumerates all subsets of a parameter's categories, 2**40 for the necks of the paper's space, and PED-ANOVA
    explains what distinguishes the best tenth of the trials. The forest also explains chance: with few trials, the
    shares of modules with many values are too high.

    Times of different devices cannot be compared; for those, only trials on the device with the most trials are used.

    Returns:
        The shares. They are NaN for modules with the same value in all trials, and for modules whose number of values
        exceeds half the number of trials (such as the backbone in stage two). They are also NaN for objectives with
        fewer than 10 trials, or with fewer than two modules to compare.
    """
    trials = _module_trials(results)
    shares = pd.DataFrame(np.nan, index=list(PARTS), columns=results.metrics)
    remarks: dict[str, None] = {}
    for name in shares:
        comparable = _comparable(trials, str(name))
        share_of_part, missing = _shares(comparable, str(name))
        remarks |= dict.fromkeys([*_on_one_device(trials, comparable, str(name)), *missing])
        for part, share in share_of_part.items():
            shares.loc[part, name] = share
    return ModuleImportances(shares, tuple(remarks))


def module_effects(results: StudyResults) -> pd.DataFrame:
    """Return the mean and median of each objective over the finished trials with each value of each module.

    Trials with different values of a module also differ in other modules, which may be the cause of a difference.

    Returns:
        A row per module and value, with the columns ``part`` (one of ``study_results.PARTS``), ``value`` (``none`` for
        a detector without neck or RPN), ``trials``, and for each objective ``<name> mean`` and ``<name> median`` in the
        stored unit. Times are those of the device with the most trials; NaN if it has no trial with the value. Rows are
        sorted by module, then by value, numbers by size.
    """
    trials = _module_trials(results)
    names = results.metrics
    comparable = {name: _comparable(trials, name) for name in names}
    rows = []
    for part in PARTS:
        for value in sorted(trials[part].unique(), key=natural_order):
            row: dict[str, object] = {"part": part, "value": value, "trials": int((trials[part] == value).sum())}
            for name in names:
                values = comparable[name].loc[comparable[name][part] == value, name]
                row |= {f"{name} mean": values.mean(), f"{name} median": values.median()}
            rows.append(row)
    statistics = [f"{name} {statistic}" for name in names for statistic in ("mean", "median")]
    return pd.DataFrame(rows, columns=["part", "value", "trials", *statistics])


def _module_trials(results: StudyResults) -> pd.DataFrame:
    """Return the finished trials whose architecture can be parsed, with ``none`` for absent parts."""
    trials = results.finished
    trials = trials[trials["input_size"].notna()].copy()
    trials[list(PARTS)] = trials[list(PARTS)].astype(object).where(trials[list(PARTS)].notna(), "none")
    return trials


def _comparable(trials: pd.DataFrame, objective: str) -> pd.DataFrame:
    """Return the trials whose values of an objective can be compared: for times, those of the most used device."""
    return max(by_device(trials, [objective]), key=len)


def _on_one_device(trials: pd.DataFrame, comparable: pd.DataFrame, objective: str) -> Iterator[str]:
    if len(comparable) < len(trials):
        title, device = quantity_of(objective).title, comparable["device"].iloc[0]
        yield f"For {title} only the {len(comparable)} of {len(trials)} trials on {device} are compared."


def _shares(trials: pd.DataFrame, objective: str) -> tuple[dict[str, float], list[str]]:
    """Return the share of each part that can be compared, and sentences that say why others cannot."""
    if len(trials) < _FEWEST_FOR_IMPORTANCE:
        return {}, [f"The effect of modules needs {_FEWEST_FOR_IMPORTANCE} trials or more; found {len(trials)}."]
    if trials[objective].nunique() == 1:
        return {}, [f"{quantity_of(objective).title} is the same in all trials, so no module has an effect on it."]
    counts = {part: trials[part].nunique() for part in PARTS}
    constant = [part for part in PARTS if counts[part] == 1]
    scattered = [part for part in PARTS if counts[part] > len(trials) / 2]
    compared = [part for part in PARTS if part not in {*constant, *scattered}]
    remarks = [f"The same in all trials, so without effect: {_titles(constant)}."] if constant else []
    remarks += [
        f"With {counts[part]} values in {len(trials)} trials the effect of the {PART_TITLES[part]} cannot be estimated."
        for part in scattered
    ]
    if len(compared) < 2:
        varying = _titles(compared) or "none"
        return {}, [*remarks, f"A comparison needs two or more modules that vary; found: {varying}."]
    evaluator = MeanDecreaseImpurityImportanceEvaluator(seed=0)
    return get_param_importances(_study_of(trials, compared, objective), evaluator=evaluator), remarks


def _study_of(trials: pd.DataFrame, parts: Sequence[str], objective: str) -> optuna.Study:
    """Return an in-memory study whose parameters are parts of the architecture and whose value is one objective."""
    distributions: dict[str, BaseDistribution] = {
        part: CategoricalDistribution(sorted(trials[part].unique())) for part in parts
    }
    copies = [
        create_trial(value=trial[objective], params={part: trial[part] for part in parts}, distributions=distributions)
        for trial in trials.to_dict("records")
    ]
    return study_in_memory([StudyDirection.MINIMIZE], copies)


def _titles(parts: Sequence[str]) -> str:
    return ", ".join(PART_TITLES[part] for part in parts)
