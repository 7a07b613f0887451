"""Which traits of a backbone go with accuracy (SM-NAS, Figures 5 and 8), and which module of a detector matters."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import MeanDecreaseImpurityImportanceEvaluator, get_param_importances
from optuna.trial import create_trial
from scipy.special import betainc

from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.searched import BackboneCode
from smnas_optuna.reporting.pareto import PARTS, by_device, natural_order, objectives_of, trials_frame
from smnas_optuna.reporting.quantity import quantity_of

Method = Literal["pearson", "spearman"]
Trials = Literal["all", "front"]

# The factors of Figure 5, in its caption's order, and what they are.
FACTORS: Final = {
    "depth": "number of blocks",
    "width": "base channels",
    "DC_1": "position of the first doubling of channels",
    "DC_2": "position of the second doubling",
    "DC_3": "position of the third doubling",
    "len_2": "share of the blocks in stage 2",
    "len_3": "share of the blocks in stage 3",
    "len_4": "share of the blocks in stage 4",
    "len_5": "share of the blocks in stage 5",
    "FLOPs": "multiply-adds",
    "mAP": "COCO metric",
}
PART_TITLES: Final = dict(zip(PARTS, ("input size", "backbone", "neck", "RPN", "head"), strict=True))

_FEWEST_TRIALS: Final = 3
_FEWEST_FOR_IMPORTANCE: Final = 10
_MOST_PAIRS_NAMED: Final = 3
# What rounding leaves of a factor that is a linear function of the one held fixed, as a share of its spread.
_ROUNDING: Final = 1e-10


@dataclass(frozen=True, eq=False)
class Correlation:
    """Correlations of factors with each other; all tables have a row and a column per factor.

    Args:
        method: Pearson's r, or Spearman's, which is Pearson's of the ranks.
        trials: All trials, or those on the Pareto front.
        control: The factor that is held fixed; it is in no table. None for plain correlations.
        alpha: Chance of calling any pair significant where none is.
        matrix: Coefficients, -1 to 1; 1 on the diagonal, NaN where there is none.
        p_values: Chance of a coefficient as far from 0 where there is no correlation; NaN on the diagonal.
        p_holm: The same after Holm's correction over all pairs that have one.
        n: Trials in which both factors (and the one held fixed) are known.
        significant: Where ``p_holm`` is at most ``alpha``; never on the diagonal.
        remarks: Sentences on what is missing, and why.
    """

    method: Method
    trials: Trials
    control: str | None
    alpha: float
    matrix: pd.DataFrame
    p_values: pd.DataFrame
    p_holm: pd.DataFrame
    n: pd.DataFrame
    significant: pd.DataFrame
    remarks: tuple[str, ...]


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


def factors_frame(study: optuna.Study) -> pd.DataFrame:
    """Return the factors of Figures 5 and 8, a row per finished trial.

    Columns: ``number``, ``on_front``, then those of ``FACTORS``. A detector builds the backbone up to the last
    level that its neck or its heads use; blocks of the code behind that are not counted.

    - ``depth``: number of blocks.
    - ``width``: base channels, those before the first doubling.
    - ``DC_k``: share of the blocks that come before the one with the k-th doubling, which is that block's index from 0
      divided by ``depth``; NaN where there are fewer doublings. Any after the third are not told.
    - ``len_s``: share of the blocks that are in stage s, which has stride ``2 ** s``. The four add up to 1, so some of
      them correlate negatively whatever was searched.
    - ``FLOPs``: ``backbone_flops`` where that is an objective, else ``flops`` of the whole detector.
    - ``mAP``: the ``map`` of the trial; NaN where COCO's evaluation found nothing to measure.

    A trial whose backbone is not a code has no factors: all of them are NaN.
    """
    trials = trials_frame(study)
    trials = trials[trials["is_finished"]]
    flops = "backbone_flops" if "backbone_flops" in [item.name for item in objectives_of(study)] else "flops"
    precision = quantity_of("map")
    rows = []
    for trial in trials.to_dict("records"):
        factors = _shape(trial["architecture"])
        if factors:
            mean_precision = np.nan if precision.is_missing(trial["map"]) else trial["map"]
            factors |= {"FLOPs": trial[flops], "mAP": mean_precision}
        rows.append({"number": trial["number"], "on_front": trial["on_front"], **factors})
    frame = pd.DataFrame(rows, columns=["number", "on_front", *FACTORS])
    return frame.astype({"number": int, "on_front": bool} | dict.fromkeys(FACTORS, float))


def correlate(
    frame: pd.DataFrame,
    method: Method = "pearson",
    control: str | None = None,
    alpha: float = 0.05,
    *,
    trials: Trials = "all",
) -> Correlation:
    """Correlate each pair of factors over the trials in which both are known.

    p values are those of Student's t with ``n - 2`` degrees of freedom, ``n - 3`` with a control: exact for normally
    distributed factors, an approximation for ranks.

    Args:
        frame: A row per trial, a column per factor, such as :func:`factors_frame`; its columns ``number`` and
            ``on_front`` are no factors. NaN and infinite values are unknown. Rows without any factor are left out.
        method: ``pearson`` for lines, ``spearman`` for whatever rises or falls.
        control: Factor to hold fixed: the partial correlation, of the residuals of linear fits of this factor, or for
            ``spearman`` of its ranks.
        alpha: Level of significance after Holm's correction; more than 0, less than 1.
        trials: ``front`` for the rows that are ``on_front`` only.

    Raises:
        ValueError: An argument is none of the above.
    """
    for name, found, expected in (("method", method, get_args(Method)), ("trials", trials, get_args(Trials))):
        if found not in expected:
            raise ValueError(f"{name} {found!r}: expected one of {', '.join(expected)}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha {alpha}: expected a number between 0 and 1")
    chosen = frame[frame["on_front"]] if trials == "front" else frame
    values = chosen.drop(columns=["number", "on_front"], errors="ignore").astype(float)
    values = values.replace([np.inf, -np.inf], np.nan)
    if control is not None and control not in values:
        raise ValueError(f"control {control!r}: expected one of {', '.join(map(str, values))}")
    factors = [str(name) for name in values if name != control]
    known = values.dropna(how="all")
    columns = {str(name): known[name].to_numpy(dtype=float) for name in known}
    fixed = [] if control is None else [columns[control]]

    shape = (len(factors), len(factors))
    matrix, p_values, n = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, dtype=np.int64)
    for i, j in itertools.combinations_with_replacement(range(len(factors)), 2):
        sample = np.column_stack([columns[factors[i]], columns[factors[j]], *fixed])
        sample = sample[~np.isnan(sample).any(axis=1)]
        n[i, j] = n[j, i] = len(sample)
        coefficient = _coefficient(sample, method)
        if i == j:
            matrix[i, i] = 1.0 if np.isfinite(coefficient) else np.nan
        else:
            matrix[i, j] = matrix[j, i] = coefficient
            p_values[i, j] = p_values[j, i] = _p_value(coefficient, len(sample) - 2 - len(fixed))

    upper = np.triu_indices(len(factors), k=1)
    p_holm = np.full(shape, np.nan)
    p_holm[upper] = _holm(p_values[upper])
    p_holm.T[upper] = p_holm[upper]

    def table(cells: NDArray[np.generic]) -> pd.DataFrame:
        return pd.DataFrame(cells, index=factors, columns=factors)

    coefficients = table(matrix)
    return Correlation(
        method=method,
        trials=trials,
        control=control,
        alpha=alpha,
        matrix=coefficients,
        p_values=table(p_values),
        p_holm=table(p_holm),
        n=table(n),
        significant=table(p_holm <= alpha),
        remarks=tuple(_remarks(known, len(values), coefficients, control)),
    )


def module_importances(study: optuna.Study) -> ModuleImportances:
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
    trials = _module_trials(study)
    shares = pd.DataFrame(np.nan, index=list(PARTS), columns=[item.name for item in objectives_of(study)])
    remarks: dict[str, None] = {}
    for name in shares:
        comparable = _comparable(trials, str(name))
        found, said = _shares(comparable, str(name))
        remarks |= dict.fromkeys([*_on_one_device(trials, comparable, str(name)), *said])
        for part, share in found.items():
            shares.loc[part, name] = share
    return ModuleImportances(shares, tuple(remarks))


def module_effects(study: optuna.Study) -> pd.DataFrame:
    """Return what the finished trials with each value of each module have reached.

    Columns: ``part`` (one of ``pareto.PARTS``), ``value`` (``none`` for no neck and no RPN), ``trials``, and for each
    objective ``<name> mean`` and ``<name> median``, as stored; times are of the device with the most trials, NaN where
    that has none with this value. Rows are in the order of the parts, then of the values, numbers by size. Trials are
    not matched: a value may stand out for what it was combined with.
    """
    trials = _module_trials(study)
    names = [item.name for item in objectives_of(study)]
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


def _shape(text: object) -> dict[str, float]:
    """Return what a backbone's code tells; nothing where the architecture has none."""
    try:
        architecture = Architecture.parse(str(text))
    except ValueError:
        return {}
    code = architecture.backbone
    if not isinstance(code, BackboneCode):
        return {}
    built = architecture.backbone_levels[-1]
    blocks = "".join(code.stages[:built])
    depth = len(blocks)
    doublings = [block for block, digit in enumerate(blocks) if digit == "2"]
    positions = {f"DC_{number}": block / depth for number, block in enumerate(doublings[:3], start=1)}
    lengths = {
        f"len_{stage}": len(digits) / depth if stage < built + 2 else 0.0 for stage, digits in enumerate(code.stages, 2)
    }
    return {"depth": depth, "width": code.base, **positions, **lengths}


def _coefficient(sample: NDArray[np.float64], method: Method) -> float:
    """Return the correlation of the first two columns, with the third, if there is one, held fixed.

    Args:
        sample: ``n x 2`` or ``n x 3`` finite values.
        method: For ``spearman`` the values are replaced by their ranks.

    Returns:
        NaN where it is not defined: too few rows to leave a degree of freedom, or a column without variation.
    """
    rows, width = sample.shape
    if rows < _FEWEST_TRIALS + width - 2 or (sample == sample[0]).all(axis=0).any():
        return float("nan")
    if method == "spearman":
        sample = pd.DataFrame(sample).rank().to_numpy(dtype=float)
    # A power of two rounds nothing, and keeps the squares of very large and very small values finite.
    scaled = np.ldexp(sample, -np.frexp(np.abs(sample).max(axis=0))[1])
    centred = scaled - scaled.mean(axis=0)
    x, y = centred[:, 0], centred[:, 1]
    least = np.zeros(2)
    if width == 3:
        z = centred[:, 2]
        least = _ROUNDING * np.linalg.norm(centred[:, :2], axis=0)
        x, y = x - z * (z @ x) / (z @ z), y - z * (z @ y) / (z @ z)
    lengths = np.linalg.norm([x, y], axis=1)
    if (lengths <= least).any():
        return float("nan")
    return float(np.clip((x / lengths[0]) @ (y / lengths[1]), -1.0, 1.0))


def _p_value(coefficient: float, freedom: int) -> float:
    """Return the two-sided p value of a correlation; NaN for NaN."""
    if np.isnan(coefficient):
        return coefficient
    square = coefficient * coefficient
    if square * freedom < 1:  # small coefficients would be lost in 1 - square
        return 1 - float(betainc(0.5, freedom / 2, square))
    return float(betainc(freedom / 2, 0.5, (1 - coefficient) * (1 + coefficient)))


def _holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p values after Holm's step-down correction (1979) over those that are not NaN."""
    adjusted = np.full(len(p_values), np.nan)
    [tested] = np.nonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested])]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return adjusted


def _remarks(known: pd.DataFrame, total: int, matrix: pd.DataFrame, control: str | None) -> Iterator[str]:
    """Say what is missing in a matrix, and why.

    Args:
        known: The rows with any factor.
        total: Number of all rows.
        matrix: The coefficients.
        control: The factor that is held fixed.
    """
    if len(known) < total:
        yield f"Left out for want of a backbone code: {total - len(known)} of {total} trials."
    fewest = _FEWEST_TRIALS + (control is not None)
    if len(known) < fewest:
        holding = f" with {control} held fixed" if control else ""
        yield f"A correlation{holding} needs {fewest} trials or more; found {len(known)}."
        return
    counts = {str(name): known[name].nunique() for name in known}
    if control and counts[control] < 2:
        state = "the same in all trials" if counts[control] else "known of no trial"
        yield f"{control} is {state}, so it cannot be held fixed."
        return
    unknown = [name for name, count in counts.items() if count == 0]
    constant = [name for name, count in counts.items() if count == 1]
    if unknown:
        yield f"Known of no trial: {', '.join(unknown)}."
    if constant:
        yield f"The same in all trials, so without correlations: {', '.join(constant)}."
    own = zip(map(str, matrix), np.diag(matrix.isna()), strict=True)
    told = [name for name, missing in own if control and missing and _vary(known[[name, control]])]
    if told:
        yield f"Without correlations, as {control} alone tells their values or ranks: {', '.join(told)}."
    undefined = [
        f"{matrix.index[i]} and {matrix.index[j]}"
        for i, j in np.argwhere(np.triu(matrix.isna(), k=1))
        if not {matrix.index[i], matrix.index[j]} & {*unknown, *constant, *told}
    ]
    if undefined:
        more = [f"{len(undefined) - _MOST_PAIRS_NAMED} more"] if len(undefined) > _MOST_PAIRS_NAMED else []
        listed = "; ".join([*undefined[:_MOST_PAIRS_NAMED], *more])
        yield f"Without correlation, for want of trials or of variation among those that have both: {listed}."


def _vary(factors: pd.DataFrame) -> bool:
    """Tell whether all factors vary among the trials in which all are known, enough of them to hold one fixed."""
    factors = factors.dropna()
    return len(factors) > _FEWEST_TRIALS and bool((factors.nunique() > 1).all())


def _module_trials(study: optuna.Study) -> pd.DataFrame:
    """Return the finished trials whose architecture can be read, with ``none`` for the parts that they do not have."""
    trials = trials_frame(study)
    trials = trials[trials["is_finished"] & trials["input_size"].notna()].copy()
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
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else a study in memory announces itself
    try:
        study = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(verbosity)
    for trial in trials.to_dict("records"):
        params = {part: trial[part] for part in parts}
        study.add_trial(create_trial(value=trial[objective], params=params, distributions=distributions))
    return study


def _titles(parts: Sequence[str]) -> str:
    return ", ".join(PART_TITLES[part] for part in parts)
