"""Importances: with which module of a detector the objectives go."""

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
    """How much of each objective's variation goes with each module of the detector.

    Args:
        shares: A row per module (``input_size``, ``backbone``, ``neck``, ``rpn``, ``head``) and a column per objective;
            each column adds up to 1. NaN where a module was not compared.
        remarks: Sentences on what is missing, and why.
    """

    shares: pd.DataFrame
    remarks: tuple[str, ...]


def module_importances(results: StudyResults) -> ModuleImportances:
    """Return which modules the variation of each objective among the finished trials goes with.

    Optuna's mean decrease of impurity: how much of the variation a random forest takes away by telling trials apart
    by that module. A study's own parameters are conditional, and parts of modules, so the forest sees the modules of
    each trial's architecture as five categories. Optuna's fANOVA goes through every subset of a parameter's
    categories, 2**40 with the necks of the paper's space; its PED-ANOVA tells what makes the best tenth of the trials.
    The forest explains chance, too: with few trials, modules with many values get more than their due.

    Times of different devices cannot be compared: of those the device with the most trials counts.

    Returns:
        NaN for modules with the same value in all trials or with more values than half the trials (each backbone of
        stage two occurs about once), and for objectives with fewer than 10 trials or less than two such modules.
    """
    trials = _module_trials(results)
    shares = pd.DataFrame(np.nan, index=list(PARTS), columns=results.metrics)
    remarks: dict[str, None] = {}
    for name in shares:
        comparable = _comparable(trials, str(name))
        found, said = _shares(comparable, str(name))
        remarks |= dict.fromkeys([*_on_one_device(trials, comparable, str(name)), *said])
        for part, share in found.items():
            shares.loc[part, name] = share
    return ModuleImportances(shares, tuple(remarks))


def module_effects(results: StudyResults) -> pd.DataFrame:
    """Return what the finished trials with each value of each module have reached.

    Columns: ``part`` (one of ``study_results.PARTS``), ``value`` (``none`` for no neck and no RPN), ``trials``, and
    for each objective ``<name> mean`` and ``<name> median``, as stored; times are of the device with the most trials,
    NaN where that has none with this value. Rows are in the order of the parts, then of the values, numbers by size.
    Trials are not matched: a value may stand out for what it was combined with.
    """
    trials = _module_trials(results)
    names = results.metrics
    comparable = {name: _comparable(trials, name) for name in names}
    rows = []
    for part in PARTS:
        for value in sorted(trials[part].unique(), key=natural_order):
            row: dict[str, object] = {"part": part, "value": value, "trials": int((trials[part] == value).sum())}
            for name in names:
                reached = comparable[name].loc[comparable[name][part] == value, name]
                row |= {f"{name} mean": reached.mean(), f"{name} median": reached.median()}
            rows.append(row)
    statistics = [f"{name} {statistic}" for name in names for statistic in ("mean", "median")]
    return pd.DataFrame(rows, columns=["part", "value", "trials", *statistics])


def _module_trials(results: StudyResults) -> pd.DataFrame:
    """Return the finished trials whose architecture can be read, with ``none`` for the parts that they do not have."""
    trials = results.finished
    trials = trials[trials["input_size"].notna()].copy()
    trials[list(PARTS)] = trials[list(PARTS)].astype(object).where(trials[list(PARTS)].notna(), "none")
    return trials


def _comparable(trials: pd.DataFrame, objective: str) -> pd.DataFrame:
    """Return the trials whose values of an objective can be compared: the most of one device, where that matters."""
    return max(by_device(trials, [objective]), key=len)


def _on_one_device(trials: pd.DataFrame, comparable: pd.DataFrame, objective: str) -> Iterator[str]:
    if len(comparable) < len(trials):
        title, device = quantity_of(objective).title, comparable["device"].iloc[0]
        yield f"For {title} {len(comparable)} of {len(trials)} trials count, those on {device}."


def _shares(trials: pd.DataFrame, objective: str) -> tuple[dict[str, float], list[str]]:
    """Return the share of each part that can be compared, and sentences on the others."""
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
        f"With {counts[part]} values in {len(trials)} trials the effect of the {PART_TITLES[part]} cannot be told."
        for part in scattered
    ]
    if len(compared) < 2:
        return {}, [*remarks, f"Comparing modules needs two or more that vary; left: {_titles(compared) or 'none'}."]
    evaluator = MeanDecreaseImpurityImportanceEvaluator(seed=0)
    return get_param_importances(_study_of(trials, compared, objective), evaluator=evaluator), remarks


def _study_of(trials: pd.DataFrame, parts: Sequence[str], objective: str) -> optuna.Study:
    """Return a study in memory whose parameters are parts of the architecture and whose value is one objective."""
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
