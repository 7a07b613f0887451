"""What ends a trial before its training: too little memory, or times that prove it pointless."""

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.search.objective import DetectorObjective, TrialContext
from smnas_optuna.search.structural import StructuralSearch
from smnas_optuna.search.studies import open_study
from smnas_optuna.study.storage import open_storage
from smnas_optuna.training.job import Target
from smnas_optuna.training.server import preload
from tests.commands import run

# Two architectures: with 2.5 MiB the two-stage one can be trained on one image at a time, RetinaNet cannot.
_OVERRIDES = (
    *("--set", "structural.space.backbones=[ResNet18]", "--set", "structural.space.necks=[none]"),
    *("--set", "structural.space.heads=[RetinaNet, 2FC]", "--set", "structural.space.rpns=[none, RPN]"),
    *("--set", "structural.seeds=[]"),
)
_SKIPPED = "would run out of memory: training on one image takes about 0.00254 GiB, and 0.00244 GiB are usable on "


def trials_of(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="tiny/structural", storage=f"sqlite:///{folder}/smnas.db").trials


@pytest.mark.parametrize("sampler", ["random", "pop"])
def test_what_does_not_fit_is_skipped_once_and_what_fits_in_parts_is_trained(
    tiny_recipe: Path, tmp_path: Path, sampler: str
) -> None:
    limit = ("--set", "device.memory_gb=0.00244140625")
    ended = run("run_study", tiny_recipe, *_OVERRIDES, *limit, "--sampler", sampler, folder=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "each batch is split into 4 parts to fit into memory" in ended.stdout
    trials = trials_of(tmp_path)
    (trained,) = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert trained.user_attrs["gradient_accumulation"] == 4
    assert 0.002 < trained.user_attrs["memory_gb"] <= 0.00244140625
    (skipped,) = [trial for trial in trials if trial.user_attrs.get("reason", "").startswith(_SKIPPED)]
    assert skipped.state == TrialState.PRUNED
    assert skipped.user_attrs["architecture"] == "64x48 ResNet18(w=8) RetinaNet"
    assert "train_seconds" not in skipped.user_attrs

    # The same study goes on with as much: it has all that it can have.
    again = run("run_study", tiny_recipe, *_OVERRIDES, *limit, "--sampler", sampler, folder=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(trials_of(tmp_path)) == len(trials)

    # And with more: what was skipped fits now.
    more = run("run_study", tiny_recipe, *_OVERRIDES, "--sampler", sampler, folder=tmp_path)
    assert more.returncode == 0, more.stdout + more.stderr
    (added,) = [trial for trial in trials_of(tmp_path)[len(trials) :] if trial.state == TrialState.COMPLETE]
    assert added.user_attrs["architecture"] == skipped.user_attrs["architecture"]


def test_a_search_in_which_nothing_fits_ends_and_says_so(tiny_recipe: Path, tmp_path: Path) -> None:
    failed = run("run_study", tiny_recipe, *_OVERRIDES, "--set", "device.memory_gb=0.001", folder=tmp_path)
    assert failed.returncode == 1
    assert "stopped: no architecture fits into memory, trial " in failed.stdout
    assert {trial.state for trial in trials_of(tmp_path)} == {TrialState.PRUNED}


def test_more_memory_than_the_machine_has_is_the_users_error(tiny_recipe: Path, tmp_path: Path) -> None:
    refused = run("run_study", tiny_recipe, "--set", "device.memory_gb=1000000", folder=tmp_path)
    assert refused.returncode == 2
    assert "device.memory_gb: found 1e+06, but " in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_time_before_training_proves_only_what_the_studys_trained_times_allow(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    preload()
    search = StructuralSearch(load_recipe(str(tiny_recipe), ["structural.seeds=[]"]))
    study = open_study(open_storage(f"sqlite:///{tmp_path}/study.db"), search, sampler="pop")
    # The first bounds the accuracy of all that is smaller. The second would dominate that at any time that can be
    # measured; but it has also been trained to a hundred-thousandth of its untrained time.
    for text, values, untrained in (
        ("64x48 ResNet18(w=8) FPN(P2-P4,c=16) RPN 2FC", (0.5, 100.0), 100.0),
        ("64x48 ResNet18(w=8) RPN 2FC", (0.9, 0.01), 1000.0),
    ):
        study.enqueue_trial(search.space.params(Architecture.parse(text)))
        trial = study.ask()
        assert str(search.space.suggest(trial)) == text
        times = {"untrained_latency_ms": untrained, "latency_ms": values[1], "device": "this one"}
        for name, value in times.items():
            trial.set_user_attr(name, value)
        study.tell(trial, values)
    study.enqueue_trial(search.space.params(Architecture.parse("64x48 ResNet18(w=8) FPN(P2-P3,c=16) RPN 2FC")))

    def evaluate(device: str) -> tuple[float, ...]:
        target = Target("cpu", "CPU", 1, 2**30, {})
        objective = DetectorObjective(
            *(search, open_dataset(search.recipe.dataset), device, target, tmp_path),
            weights=None,
            listen=lambda *_: None,
            describe=lambda *_: None,
        )
        return objective(trial, TrialContext(study.get_trials(), lambda: None, (), lambda: None))

    trial = study.ask()
    accuracy, latency = evaluate("this one")
    assert latency > trial.user_attrs["untrained_latency_ms"] * 1e-5
    assert 0.0 <= accuracy <= 1.0

    # Where no time of this device is known the bound is half of what was measured, and that is dominated.
    study.enqueue_trial(trial.params)
    trial = study.ask()
    with pytest.raises(optuna.TrialPruned, match="dominated: trial 1 is better"):
        evaluate("another")
    assert trial.user_attrs["outcome"] == "dominated"
