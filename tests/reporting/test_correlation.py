import itertools
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from smnas_optuna.reporting.correlation import Correlation, Method, correlate
from smnas_optuna.reporting.factors import FACTORS, factors_frame
from smnas_optuna.reporting.study_results import results_of
from tests.reporting.synthetic_study import modular_study

EXACT = 1e-12


def random_frame(
    rows: int, columns: Sequence[str], seed: int, *, unknown: float = 0.0, levels: int = 0
) -> pd.DataFrame:
    """Return random correlated factors, a share of them unknown; with few levels there are many ties."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(rows, len(columns))) @ random.normal(size=(len(columns), len(columns)))
    if levels:
        values = np.floor(levels * stats.norm.cdf(values))
    values[random.random(values.shape) < unknown] = np.nan
    return pd.DataFrame(values, columns=list(columns))


def pairs(result: Correlation) -> list[tuple[str, str]]:
    return list(itertools.combinations(map(str, result.matrix), 2))


def at(table: pd.DataFrame, row: str, column: str) -> float:
    """Return one cell."""
    return float(table.loc[[row], [column]].to_numpy()[0, 0])


def quietly(frame: pd.DataFrame, method: Method, control: str | None = None) -> Correlation:
    """Correlate, and fail on any warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return correlate(frame, method, control)


@pytest.mark.parametrize("unknown", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_pearson_equals_pandas_and_scipy(seed: int, unknown: float) -> None:
    frame = random_frame(25, "abcde", seed, unknown=unknown)
    result = quietly(frame, "pearson")
    pd.testing.assert_frame_equal(result.matrix, frame.corr(min_periods=3), rtol=0, atol=EXACT)
    for one, other in pairs(result):
        both = frame[[one, other]].dropna()
        r, p = stats.pearsonr(both[one], both[other])
        assert at(result.matrix, one, other) == pytest.approx(r, rel=0, abs=EXACT)
        assert at(result.p_values, one, other) == pytest.approx(p, rel=0, abs=EXACT)
        assert at(result.p_values, other, one) == at(result.p_values, one, other)
        assert at(result.n, one, other) == len(both)


@pytest.mark.parametrize("levels", [0, 4])
@pytest.mark.parametrize("unknown", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_spearman_equals_pandas_and_scipy(seed: int, unknown: float, levels: int) -> None:
    frame = random_frame(25, "abcde", seed, unknown=unknown, levels=levels)
    result = quietly(frame, "spearman")
    pd.testing.assert_frame_equal(result.matrix, frame.corr("spearman", min_periods=3), rtol=0, atol=EXACT)
    for one, other in pairs(result):
        both = frame[[one, other]].dropna()
        r, p = stats.spearmanr(both[one], both[other])
        assert at(result.matrix, one, other) == pytest.approx(r, rel=0, abs=EXACT)
        assert at(result.p_values, one, other) == pytest.approx(p, rel=0, abs=EXACT)


def residuals(values: NDArray[np.float64], control: NDArray[np.float64]) -> NDArray[np.float64]:
    design = np.column_stack([np.ones(len(control)), control])
    return np.asarray(values - design @ np.linalg.lstsq(design, values)[0], dtype=np.float64)


@pytest.mark.parametrize("method", ["pearson", "spearman"])
@pytest.mark.parametrize("unknown", [0.0, 0.2])
@pytest.mark.parametrize("seed", range(5))
def test_partial_correlation_equals_the_correlation_of_residuals(seed: int, unknown: float, method: Method) -> None:
    frame = random_frame(30, "abcz", seed, unknown=unknown)
    result = quietly(frame, method, "z")
    assert list(result.matrix) == ["a", "b", "c"]
    for one, other in pairs(result):
        known = frame[[one, other, "z"]].dropna()
        if method == "spearman":
            known = known.rank()
        control = known["z"].to_numpy()
        r, _ = stats.pearsonr(*(residuals(known[name].to_numpy(), control) for name in (one, other)))
        freedom = len(known) - 3
        p = 2 * stats.t.sf(abs(r) * math.sqrt(freedom / (1 - r * r)), freedom)
        assert at(result.matrix, one, other) == pytest.approx(r, rel=0, abs=EXACT)
        assert at(result.p_values, one, other) == pytest.approx(p, rel=0, abs=EXACT)
        assert at(result.n, one, other) == len(known)


def test_partial_correlation_removes_the_effect_of_the_control() -> None:
    random = np.random.default_rng(0)
    flops, a, b = random.normal(size=(3, 2000))
    frame = pd.DataFrame({"depth": flops + 0.3 * a, "mAP": flops + 0.3 * b, "FLOPs": flops})
    assert at(correlate(frame).matrix, "depth", "mAP") == pytest.approx(0.92, abs=0.02)
    assert at(correlate(frame, control="FLOPs").matrix, "depth", "mAP") == pytest.approx(0, abs=0.06)


@given(exponents=st.tuples(*[st.integers(-900, 900)] * 3), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_the_unit_of_a_factor_does_not_matter(exponents: tuple[int, ...], seed: int) -> None:
    frame = random_frame(8, "abz", seed)
    scaled = frame * [math.ldexp(1, exponent) for exponent in exponents]
    for control in (None, "z"):
        pd.testing.assert_frame_equal(
            quietly(frame, "pearson", control).matrix, quietly(scaled, "pearson", control).matrix
        )


cells = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0, 1.0, 2.0, 1e-300, 1e300, 0.1 + 0.2, 0.3])


@given(
    rows=st.lists(st.tuples(*[cells] * 4), max_size=9),
    method=st.sampled_from(["pearson", "spearman"]),
    control=st.sampled_from([None, "z"]),
)
@settings(deadline=None, max_examples=300)
def test_for_any_values_a_coefficient_is_between_minus_1_and_1_or_nan(
    rows: list[tuple[float, ...]], method: Method, control: str | None
) -> None:
    frame = pd.DataFrame(rows, columns=list("abcz"), dtype=float)
    result = quietly(frame, method, control)
    coefficients = result.matrix.to_numpy()
    assert ((np.abs(coefficients) <= 1) | np.isnan(coefficients)).all()
    np.testing.assert_array_equal(coefficients, coefficients.T)
    fewest = 4 if control else 3
    assert np.isnan(coefficients[result.n.to_numpy() < fewest]).all()
    tested = result.p_values.notna().to_numpy()
    off_diagonal = ~np.eye(len(coefficients), dtype=bool)
    np.testing.assert_array_equal(tested, ~np.isnan(coefficients) & off_diagonal)
    assert result.remarks or tested[off_diagonal].all()


def holm_by_definition(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Return which hypotheses Holm's procedure rejects: the smallest p values, each at alpha / remaining hypotheses."""
    rejected = [False] * len(p_values)
    while not all(rejected):
        index = min((i for i, done in enumerate(rejected) if not done), key=lambda i: p_values[i])
        if p_values[index] > alpha / rejected.count(False):
            break
        rejected[index] = True
    return rejected


@pytest.mark.parametrize("seed", range(5))
def test_significance_equals_holms_procedure_at_every_level(seed: int) -> None:
    frame = random_frame(12, "abcdef", seed, unknown=0.1).assign(constant=1.0)
    result = correlate(frame)
    tested = [pair for pair in pairs(result) if "constant" not in pair]
    p_values = [at(result.p_values, *pair) for pair in tested]
    corrected = [at(result.p_holm, *pair) for pair in tested]
    # Levels on both sides of each level at which the decision may change.
    limits = {p * count * (1 + step) for p in p_values for count in range(1, 16) for step in (-1e-9, 1e-9)}
    for alpha in [limit for limit in limits if limit < 1]:
        assert [p <= alpha for p in corrected] == holm_by_definition(p_values, alpha)
    assert max(corrected) <= 1


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.3])
def test_significant_cells_depend_on_the_level(alpha: float) -> None:
    result = correlate(random_frame(12, "abcdef", 0).assign(constant=1.0), alpha=alpha)
    pd.testing.assert_frame_equal(result.significant, result.p_holm <= alpha)
    assert result.significant.any(axis=None)
    pd.testing.assert_frame_equal(result.significant, result.significant.T)
    assert not result.significant["constant"].any()
    assert not np.diag(result.significant).any()


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_constant_and_unknown_factors_are_named(method: Method) -> None:
    frame = random_frame(10, ["depth", "mAP"], 0).assign(width=64.0, len_5=0.0, DC_3=np.nan)
    result = quietly(frame, method)
    assert result.remarks == (
        "Not known of any trial: DC_3.",
        "The same in all trials, so without correlations: width, len_5.",
    )
    assert result.matrix[["width", "len_5", "DC_3"]].isna().all(axis=None)
    assert list(np.diag(result.matrix)) == [1.0, 1.0, *[pytest.approx(math.nan, nan_ok=True)] * 3]
    assert at(result.p_holm, "depth", "mAP") == at(result.p_values, "depth", "mAP")


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_fewer_than_three_trials_have_no_correlation(rows: int) -> None:
    result = quietly(random_frame(rows, "ab", 0), "pearson")
    assert result.matrix.isna().all(axis=None)
    assert result.remarks == (f"A correlation needs 3 trials or more; found {rows}.",)


def test_holding_a_factor_fixed_requires_one_more_trial() -> None:
    result = quietly(random_frame(3, "abz", 0), "pearson", "z")
    assert result.matrix.isna().all(axis=None)
    assert result.remarks == ("A correlation with z held fixed needs 4 trials or more; found 3.",)
    assert quietly(random_frame(4, "abz", 0), "pearson", "z").matrix.notna().all(axis=None)


def test_a_pair_with_too_few_trials_is_named() -> None:
    frame = random_frame(6, "abc", 0)
    frame.loc[:3, "a"] = np.nan
    frame.loc[4:, "b"] = 7.0
    [remark] = quietly(frame, "pearson").remarks
    assert (
        remark
        == "Without correlation, for want of trials or of variation among those that have both: a and b; a and c."
    )


@pytest.mark.parametrize(("values", "state"), [(5.0, "the same in all trials"), (np.nan, "not known of any trial")])
def test_a_control_must_vary(values: float, state: str) -> None:
    result = quietly(random_frame(10, "ab", 0).assign(FLOPs=values), "pearson", "FLOPs")
    assert result.matrix.isna().all(axis=None)
    assert result.remarks == (f"FLOPs is {state}, so it cannot be held fixed.",)


def test_a_factor_that_the_control_determines_has_no_correlation() -> None:
    frame = random_frame(10, ["depth", "width", "FLOPs"], 0)
    frame["params"] = 3 * frame["FLOPs"] + 1
    result = quietly(frame, "pearson", "FLOPs")
    assert result.remarks == ("Without correlations, since FLOPs determines their values or ranks: params.",)
    assert result.matrix["params"].isna().all()
    assert not math.isnan(at(result.matrix, "depth", "width"))


def test_on_a_front_of_map_and_flops_the_rank_of_flops_determines_that_of_map(tmp_path: Path) -> None:
    frame = factors_frame(results_of(modular_study(tmp_path)))
    result = correlate(frame, "spearman", "FLOPs", trials="front")
    assert result.remarks == ("Without correlations, since FLOPs determines their values or ranks: mAP.",)


def test_only_trials_on_the_front_are_correlated_if_requested(tmp_path: Path) -> None:
    frame = factors_frame(results_of(modular_study(tmp_path)))
    front, everything = correlate(frame, trials="front"), correlate(frame)
    factors = frame[list(FACTORS)]
    pd.testing.assert_frame_equal(front.matrix, factors[frame["on_front"]].corr(), rtol=0, atol=EXACT)
    pd.testing.assert_frame_equal(everything.matrix, factors.corr(), rtol=0, atol=EXACT)
    assert (front.trials, at(front.n, "mAP", "depth")) == ("front", frame["on_front"].sum())
    assert (everything.trials, at(everything.n, "mAP", "depth")) == ("all", 60)
    assert everything.remarks == ()


def test_correlations_of_random_codes_show_what_their_map_depends_on(tmp_path: Path) -> None:
    result = correlate(factors_frame(results_of(modular_study(tmp_path))))
    assert result.significant.loc["mAP", ["FLOPs", "DC_1"]].all()
    assert at(result.matrix, "mAP", "FLOPs") > 0.7
    assert at(result.matrix, "mAP", "DC_1") < -0.5
    assert not result.significant.loc["mAP", "width"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "kendall"}, "method 'kendall': expected one of pearson, spearman"),
        ({"trials": "best"}, "trials 'best': expected one of all, front"),
        ({"control": "FLOPS"}, "control 'FLOPS': expected one of a, b"),
        ({"alpha": 0.0}, "alpha 0.0: expected a number between 0 and 1"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        correlate(random_frame(5, "ab", 0), **arguments)  # type: ignore[arg-type]
