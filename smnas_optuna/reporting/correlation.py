"""Which factors go together (SM-NAS, Figures 5 and 8): their correlations, and which of them are no chance."""

import itertools
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

Method = Literal["pearson", "spearman"]
Trials = Literal["all", "front"]

_FEWEST_TRIALS: Final = 3
_MOST_PAIRS_NAMED: Final = 3
# What rounding leaves of a factor that is a linear function of the one held fixed, as a share of its variance.
_ROUNDING: Final = 1e-12


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


def correlate(
    frame: pd.DataFrame,
    method: Method = "pearson",
    control: str | None = None,
    alpha: float = 0.05,
    *,
    trials: Trials = "all",
) -> Correlation:
    """Correlate each pair of factors over the trials in which both are known.

    p values are SciPy's ``pearsonr``'s, with a degree of freedom less where a factor is held fixed: exact for normally
    distributed factors, an approximation for ranks.

    Args:
        frame: A row per trial, a column per factor, such as
            :func:`~smnas_optuna.reporting.factors.factors_frame`; its columns ``number`` and ``on_front`` are no
            factors. NaN and infinite values are unknown. Rows without any factor are left out.
        method: ``pearson`` for lines, ``spearman`` for whatever rises or falls.
        control: Factor to hold fixed: the partial correlation, which is that of the residuals of linear fits of this
            factor, or for ``spearman`` of its ranks.
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
    matrix, n = np.full(shape, np.nan), np.zeros(shape, dtype=np.int64)
    for i, j in itertools.combinations_with_replacement(range(len(factors)), 2):
        sample = np.column_stack([columns[factors[i]], columns[factors[j]], *fixed])
        sample = sample[~np.isnan(sample).any(axis=1)]
        n[i, j] = n[j, i] = len(sample)
        matrix[i, j] = matrix[j, i] = _coefficient(sample, method)
    np.fill_diagonal(matrix, np.round(np.diag(matrix)))  # 1 but for rounding, or NaN
    freedom = n - 2 - len(fixed)
    p_values = 2 * stats.beta.sf(np.abs(matrix), freedom / 2, freedom / 2, loc=-1, scale=2)
    np.fill_diagonal(p_values, np.nan)

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
        return math.nan
    if method == "spearman":
        sample = stats.rankdata(sample, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        xy, *with_control = [
            float(stats.pearsonr(one, other).statistic) for one, other in itertools.combinations(sample.T, 2)
        ]
    if not with_control:
        return xy
    xz, yz = with_control
    x_left, y_left = 1 - xz * xz, 1 - yz * yz
    if min(x_left, y_left) < _ROUNDING:
        return math.nan
    return float(np.clip((xy - xz * yz) / math.sqrt(x_left * y_left), -1.0, 1.0))


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
