"""Correlations of factors, with tests of significance (SM-NAS, Figures 5 and 8)."""

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
# Share of a factor's variance below which the rest is a rounding error: it is a linear function of the control.
_ROUNDING: Final = 1e-12


@dataclass(frozen=True, eq=False)
class Correlation:
    """Correlations of factors with each other. All tables have a row and a column per factor.

    Args:
        method: ``pearson``, or ``spearman`` for Pearson's correlation of the ranks.
        trials: ``all`` trials, or only those on the Pareto ``front``.
        control: Factor that is held fixed (partial correlations); it is in none of the tables. None for plain
            correlations.
        alpha: Level of significance, for all pairs together.
        matrix: Correlation coefficients, -1 to 1; 1 on the diagonal, NaN where undefined.
        p_values: p values for the hypothesis that the correlation is 0; NaN on the diagonal and where undefined.
        p_holm: p values after Holm's correction over all pairs.
        n: Number of trials in which both factors, and the control, are known.
        significant: Whether ``p_holm`` is at most ``alpha``; False on the diagonal.
        remarks: Sentences that say which correlations are missing, and why.
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

    p values are computed like those of SciPy's ``pearsonr``, with one degree of freedom less if a factor is held fixed.
    They are exact for normally distributed factors, and an approximation for ranks.

    Args:
        frame: A row per trial and a column per factor, such as the result of
            :func:`~smnas_optuna.reporting.factors.factors_frame`. The columns ``number`` and ``on_front`` are not
            factors. NaN and infinite values count as unknown. Rows without any known factor are ignored.
        method: ``pearson`` for linear relations, ``spearman`` for monotone ones.
        control: Factor to hold fixed; None for plain correlations. The partial correlation of two factors is the
            correlation of the residuals of their linear regressions on the control (for ``spearman``, all on ranks).
        alpha: Level of significance after Holm's correction, between 0 and 1, both excluded.
        trials: ``front`` to use only the rows that are ``on_front``; ``all`` to use all.

    Raises:
        ValueError: An argument has an invalid value.
    """
    for name, found, expected in (("method", method, get_args(Method)), ("trials", trials, get_args(Trials))):
        if found not in expected:
            raise ValueError(f"{name} {found!r}: expected one of {', '.join(expected)}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha {alpha}: expected a number between 0 and 1")
    selected = frame[frame["on_front"]] if trials == "front" else frame
    values = selected.drop(columns=["number", "on_front"], errors="ignore").astype(float)
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
    """Return the correlation of the first two columns, holding the third column fixed if there is one.

    Args:
        sample: Finite values, ``n x 2`` or ``n x 3``.
        method: ``pearson`` or ``spearman``.

    Returns:
        The coefficient; NaN if there are too few rows, a column is constant, or the third column determines another.
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
    x_variance, y_variance = 1 - xz * xz, 1 - yz * yz
    if min(x_variance, y_variance) < _ROUNDING:
        return math.nan
    return float(np.clip((xy - xz * yz) / math.sqrt(x_variance * y_variance), -1.0, 1.0))


def _holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p values after Holm's step-down correction (1979); NaN stays NaN and is not counted."""
    adjusted = np.full(len(p_values), np.nan)
    [tested] = np.nonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested])]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return adjusted


def _remarks(known: pd.DataFrame, total: int, matrix: pd.DataFrame, control: str | None) -> Iterator[str]:
    """Yield sentences that say which coefficients are missing, and why.

    Args:
        known: Rows with at least one known factor.
        total: Number of all rows.
        matrix: The coefficients.
        control: The factor that is held fixed, if any.
    """
    if len(known) < total:
        yield f"Left out, since they have no backbone code: {total - len(known)} of {total} trials."
    fewest = _FEWEST_TRIALS + (control is not None)
    if len(known) < fewest:
        holding = f" with {control} held fixed" if control else ""
        yield f"A correlation{holding} needs {fewest} trials or more; found {len(known)}."
        return
    counts = {str(name): known[name].nunique() for name in known}
    if control and counts[control] < 2:
        state = "the same in all trials" if counts[control] else "not known of any trial"
        yield f"{control} is {state}, so it cannot be held fixed."
        return
    unknown = [name for name, count in counts.items() if count == 0]
    constant = [name for name, count in counts.items() if count == 1]
    if unknown:
        yield f"Not known of any trial: {', '.join(unknown)}."
    if constant:
        yield f"The same in all trials, so without correlations: {', '.join(constant)}."
    diagonal = zip(map(str, matrix), np.diag(matrix.isna()), strict=True)
    determined = [name for name, missing in diagonal if control and missing and _vary(known[[name, control]])]
    if determined:
        yield f"Without correlations, since {control} determines their values or ranks: {', '.join(determined)}."
    undefined = [
        f"{matrix.index[i]} and {matrix.index[j]}"
        for i, j in np.argwhere(np.triu(matrix.isna(), k=1))
        if not {matrix.index[i], matrix.index[j]} & {*unknown, *constant, *determined}
    ]
    if undefined:
        more = [f"{len(undefined) - _MOST_PAIRS_NAMED} more"] if len(undefined) > _MOST_PAIRS_NAMED else []
        listed = "; ".join([*undefined[:_MOST_PAIRS_NAMED], *more])
        yield f"Without correlation, for want of trials or of variation among those that have both: {listed}."


def _vary(factors: pd.DataFrame) -> bool:
    """Return whether enough trials have all factors to hold one fixed, and all factors vary among them."""
    factors = factors.dropna()
    return len(factors) > _FEWEST_TRIALS and bool((factors.nunique() > 1).all())
