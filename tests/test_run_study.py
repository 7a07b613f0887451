import json
import os
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from smnas_optuna.data.digits import make_digits
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.search.structural import StructuralSearch
from smnas_optuna.search.studies import open_study
from smnas_optuna.study.storage import open_storage
from tests.commands import Started, run, run_alone

STORAGE = "sqlite:///smnas.db"


def load(folder: Path, name: str = "tiny/structural") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/smnas.db")


def test_a_search_records_every_trial_shows_the_front_and_goes_on_where_it_ended(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    first = run("run_study", tiny_recipe, "--seed", 1, folder=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    assert "4/4 trials" in first.stdout
    assert "Pareto front of tiny/structural" in first.stdout
    report = tmp_path / "work_dirs" / "tiny" / "tiny-structural.html"
    assert f"report: {report}" in first.stdout
    assert "Plotly.newPlot" in report.read_text(encoding="utf-8")

    trials = load(tmp_path).trials
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(complete) == 4
    assert len({trial.user_attrs["architecture"] for trial in complete}) == 4
    for trial in complete:
        attributes = trial.user_attrs
        assert trial.values == [attributes["map"], attributes["latency_ms"]]
        assert attributes["flops"] > 0
        assert attributes["params"] > 0
        assert attributes["train_seconds"] > 0
        assert attributes["device"].endswith("1 thread")
        assert {"map_50", "map_75", "map_small", "map_medium", "map_large", "latency_spread_ms"} <= set(attributes)
        assert "reason" not in attributes

    again = run("run_study", tiny_recipe, "--seed", 1, folder=tmp_path)
    assert again.returncode == 0
    assert "epoch" not in again.stdout
    assert [trial.number for trial in load(tmp_path).trials] == [trial.number for trial in trials]

    further = run("run_study", tiny_recipe, "--n-trials", 5, "--sampler", "tpe", folder=tmp_path)
    assert further.returncode == 0
    complete = [trial for trial in load(tmp_path).trials if trial.state == TrialState.COMPLETE]
    assert len(complete) == 5


def test_a_search_ends_when_the_whole_space_is_evaluated(tiny_recipe: Path, tmp_path: Path) -> None:
    narrow = ["structural.space.backbones=[ResNet18]", "structural.space.necks=[none]", "structural.seeds=[]"]
    narrow += ["structural.space.rpns=[none, RPN]", "structural.space.heads=[RetinaNet, 2FC]"]
    overrides = [argument for override in narrow for argument in ("--set", override)]
    ended = run("run_study", tiny_recipe, *overrides, "--n-trials", 50, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    trials = load(tmp_path).trials
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) == 2
    assert all(
        trial.user_attrs["reason"].startswith("duplicate: trial ")
        for trial in trials
        if trial.state == TrialState.PRUNED
    )


def test_a_search_whose_trials_all_fail_ends_with_the_reason(tiny_recipe: Path, tmp_path: Path) -> None:
    hopeless = ("--set", "structural.training.lr=1e30", "--set", "structural.training.clip_gradients=null")
    failed = run("run_study", tiny_recipe, *hopeless, "--n-trials", 10, folder=tmp_path)
    assert failed.returncode == 1
    assert "stopped: 5 trials in a row failed, the last with " in failed.stdout
    # The random sampler may propose what has failed once more, which is pruned.
    trials = [trial for trial in load(tmp_path).trials if trial.state != TrialState.PRUNED]
    assert [trial.state for trial in trials] == [TrialState.FAIL] * 5
    assert trials[0].user_attrs["reason"].startswith("loss became nan in epoch 1 at learning rate")
    assert all(trial.user_attrs["reason"] for trial in trials)


def test_a_search_in_which_no_trial_could_be_completed_has_failed(tiny_recipe: Path, tmp_path: Path) -> None:
    hopeless = ("--set", "structural.training.lr=1e30", "--set", "structural.training.clip_gradients=null")
    failed = run("run_study", tiny_recipe, *hopeless, "--n-trials", 1, folder=tmp_path)
    assert failed.returncode == 1
    assert "stopped: no trial could be completed, the last failed with loss became nan" in failed.stdout


def test_an_architecture_that_provably_cannot_reach_the_front_is_not_trained(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(tiny_recipe))
    space, seed = recipe.structural.space, recipe.structural.seeds[0]
    study = open_study(open_storage(f"sqlite:///{tmp_path}/smnas.db"), StructuralSearch(recipe))
    # With a cascade, so bigger, the seed is poor; something else is better in no time.
    bigger, better = seed.replace("2FC", "Cascade(n=2)"), "64x48 ResNet18(w=8) RetinaNet"
    for text, values in ((bigger, (0.1, 9.0)), (better, (0.9, 1e-3))):
        architecture = Architecture.parse(text)
        scratch = optuna.create_study(directions=study.directions)
        scratch.enqueue_trial(space.params(architecture))
        space.suggest(scratch.ask())
        asked = scratch.trials[0]
        attributes = {"architecture": text, "map": values[0], "map_50": values[0], "latency_ms": values[1]}
        study.add_trial(
            optuna.trial.create_trial(
                values=list(values), params=asked.params, distributions=asked.distributions, user_attrs=attributes
            )
        )
    ended = run("run_study", tiny_recipe, "--sampler", "pop", "--n-trials", 3, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    gated = load(tmp_path).trials[0]
    assert gated.user_attrs["architecture"] == seed
    assert gated.state == TrialState.PRUNED
    assert gated.user_attrs["reason"].startswith("dominated: trial 2 is better even than the best that this can be")
    assert "trial 1" in gated.user_attrs["reason"]
    assert "train_seconds" not in gated.user_attrs
    assert "3/3 trials" in ended.stdout


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_ended_run_leaves_no_running_trial_and_says_how_to_go_on(
    tiny_recipe: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    arguments = ("run_study", tiny_recipe, "--n-trials", 3, "--set", "structural.training.epochs=10")
    with Started(*arguments, folder=tmp_path) as search:
        told = []
        for line in search.stdout:
            told.append(line)
            if "epoch 2/10" in line:
                search.send_signal(sent)
        assert search.wait(30) == 130
        assert search.stderr.read() == ""
    assert told[-1] == "interrupted with 0 of 3 trials done, all kept; the same command goes on\n"
    (interrupted,) = load(tmp_path).trials
    assert interrupted.state == TrialState.FAIL
    assert interrupted.user_attrs["outcome"] == "interrupted"

    resumed = run(
        *("run_study", tiny_recipe, "--n-trials", 1), "--set", "structural.training.epochs=10", folder=tmp_path
    )
    assert resumed.returncode == 0, resumed.stderr
    _, again = load(tmp_path).trials
    assert again.state == TrialState.COMPLETE
    assert again.user_attrs["architecture"] == interrupted.user_attrs["architecture"]


def test_both_stages_run_one_after_the_other_and_are_resumed_as_one(tiny_recipe: Path, tmp_path: Path) -> None:
    command = ("run_study", tiny_recipe, "--stage", "all", "--n-trials", 2, "--seed", 1)
    ended = run(*command, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    storage = f"sqlite:///{tmp_path}/smnas.db"
    names = optuna.get_all_study_names(storage)
    front = {trial.number for trial in load(tmp_path).best_trials}
    assert names == ["tiny/structural", *(f"tiny/modular/C{k}" for k in range(len(front)))]
    for name in names[1:]:
        study = optuna.load_study(study_name=name, storage=storage)
        assert study.metric_names == ["map", "backbone_flops"]
        assert study.user_attrs["candidate"]["trial"] in front
        first, second = study.trials
        assert first.user_attrs["architecture"] == study.user_attrs["candidate"]["baseline"]
        assert second.user_attrs["architecture"] != first.user_attrs["architecture"]
        assert first.values[1] == first.user_attrs["backbone_flops"] < first.user_attrs["flops"]
        assert first.user_attrs["latency_ms"] > 0
        assert f"{name} refines trial {study.user_attrs['candidate']['trial']}, " in ended.stdout
        assert (tmp_path / "work_dirs/tiny" / name.removeprefix("tiny/") / "trial_00000" / "weights.pth").exists()
        assert (tmp_path / "work_dirs/tiny" / f"{name.replace('/', '-')}.html").exists()
    assert "of 2 detectors dominate" in ended.stdout

    again = run(*command, folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "epoch" not in again.stdout
    assert optuna.get_all_study_names(storage) == names


def test_stage_two_alone_needs_stage_one_and_a_section(tiny_recipe: Path, tmp_path: Path) -> None:
    refused = run("run_study", tiny_recipe, "--stage", "modular", folder=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: study 'tiny/structural': not in the database; expected stage one's, --stage all runs both\n"
    )
    without = run("run_study", tiny_recipe, "--stage", "modular", "--set", "modular=null", folder=tmp_path)
    assert without.returncode == 2
    assert "has no section modular" in without.stderr
    wrong = run("run_study", tiny_recipe, "--stage", "modular", "--candidates", "1,x", folder=tmp_path)
    assert wrong.returncode == 2
    assert "--candidates '1,x': expected numbers of stage one's trials" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--candidates", "0,1"], "--candidates 0,1: is for --stage modular and all"),
        (["--candidates", "0", "--stage", "transfer"], "--candidates 0: is for --stage modular and all"),
        (["--ray-address", "auto"], "--ray-address auto: is for --launcher ray"),
        (["--sampler", "tpe", "--stage", "transfer"], "--sampler tpe: is for --stage structural, modular and all"),
        (["--seed", "1", "--stage", "transfer"], "--seed 1: is for --stage structural, modular and all"),
        (["--status", "--dry-run"], "--status: expected one of --status and --dry-run"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(
    tiny_recipe: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    ended = run("run_study", tiny_recipe, *arguments, folder=tmp_path)
    assert (ended.returncode, ended.stderr) == (2, f"error: {message}\n")


def test_a_dry_run_of_stage_two_tells_the_size_of_each_kind_of_space(tmp_path: Path) -> None:
    dry = run("run_study", "coco", "--stage", "modular", "--dry-run", folder=tmp_path)
    assert dry.returncode == 0, dry.stderr
    assert "10,278,912 architectures for 1333x800 ResNet18" in dry.stdout
    assert "394,080,000 architectures for 1333x800 ResNet50" in dry.stdout
    assert dry.stdout.count("the backbone)") == 9  # the 4 that are evaluated first and 5 others
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_needs_no_data_and_writes_nothing(tmp_path: Path) -> None:
    dry = run("run_study", "coco", "--dry-run", folder=tmp_path)
    assert dry.returncode == 0, dry.stderr
    assert dry.stderr == ""
    assert "10,332 architectures" in dry.stdout
    assert dry.stdout.count("GFLOPs") == 13  # the 8 seeds and 5 others
    assert "evaluate 500 of them, 8 given seeds first" in dry.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "classes", "trials"), [("voc", 20, 300), ("bdd", 10, 400)])
def test_a_dry_run_knows_the_classes_of_voc_and_bdd_without_data(
    name: str, classes: int, trials: int, tmp_path: Path
) -> None:
    dry = run("run_study", name, "--dry-run", folder=tmp_path)
    assert (dry.returncode, dry.stderr) == (0, "")
    assert f"as detectors of {classes} classes:" in dry.stdout
    assert f"evaluate {trials} of them, 7 given seeds first" in dry.stdout
    assert list(tmp_path.iterdir()) == []


def coco_recipe(recipe: Path, folder: Path) -> dict[str, Any]:
    """Turn the tiny recipe into one for COCO files in ``folder``, and return it."""
    digits = make_digits(2, 8, 4, width=64, height=48)
    for name in ("train", "val"):
        (folder / f"{name}.json").write_bytes((digits / f"{name}.json").read_bytes())
    (folder / "images").mkdir()
    for name in ("train", "val"):
        (folder / "images" / name).symlink_to(digits / name)
    content: dict[str, Any] = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    content["dataset"] = {
        "kind": "coco",
        "root": str(folder),
        "train": {"annotations": "train.json", "images": "images/train"},
        "val": {"annotations": "val.json", "images": "images/val"},
    }
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    return content


def test_a_users_own_coco_data_is_searched(tiny_recipe: Path, tmp_path: Path) -> None:
    coco_recipe(tiny_recipe, tmp_path)
    searched = run("run_study", tiny_recipe, "--n-trials", 1, folder=tmp_path)
    assert searched.returncode == 0, searched.stderr
    assert load(tmp_path).trials[0].state == TrialState.COMPLETE


def _break(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)


def _list_absent_image(tmp_path: Path) -> None:
    content = json.loads((tmp_path / "val.json").read_text(encoding="utf-8"))
    content["images"][0]["file_name"] = "absent.png"
    (tmp_path / "val.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "prepare", "expected"),
    [
        pytest.param(["absent.yaml"], None, "recipe 'absent.yaml': no such file", id="missing recipe"),
        pytest.param(["{recipe}", "--set", "structural.trainin=1"], None, "did you mean training?", id="misspelt key"),
        pytest.param(
            ["bad.yaml"],
            lambda p: _break(p, "bad.yaml", b"name: a\n b: [\n"),
            "bad.yaml:2: not valid YAML",
            id="syntax",
        ),
        pytest.param(
            ["{recipe}", "--set", "dataset.train.images=absent"], None, "dataset.train.images: ", id="missing folder"
        ),
        pytest.param(["{recipe}"], lambda p: _break(p, "val.json", b"[1]"), "not COCO annotations", id="not COCO"),
        pytest.param(["{recipe}"], _list_absent_image, "absent.png of 4 listed images absent", id="absent image"),
        pytest.param(
            ["{recipe}", "--storage", "postgresql+psycopg://me:secret@127.0.0.1:1/db"],
            None,
            "postgresql+psycopg://me:***@127.0.0.1:1/db: cannot be used",
            id="unreachable database",
        ),
        pytest.param(["{recipe}", "--output", "tiny.yaml/out"], None, "--output tiny.yaml/out: cannot be", id="folder"),
        pytest.param(["{recipe}", "--output", "/proc/out"], None, "--output /proc/out: cannot be", id="no permission"),
        pytest.param(["{recipe}", "--set", "device.gpus_per_trial=3"], None, "expected a multiple of", id="batch"),
        pytest.param(["{recipe}", "--set", "structural.training.epochs=true"], None, "found True", id="bool"),
        pytest.param(["{recipe}", "--n-trials", "0"], None, "--n-trials", id="no trials"),
        pytest.param(["{recipe}", "--sampler", "best"], None, "'best' is not one of", id="unknown sampler"),
        pytest.param(["{recipe}", "--stage", "third"], None, "'third'", id="unknown stage"),
        pytest.param(["{recipe}", "--speed", "9"], None, "--speed", id="unknown option"),
        pytest.param([], None, "'recipe'", id="no recipe"),
        pytest.param(
            ["{recipe}", "--set", "structural.training.weights={ResNet18: no.pth, MobileNetV2: no.pth}"],
            None,
            "structural.training.weights: no.pth for ResNet18(w=8) cannot be loaded",
            id="absent weights",
        ),
    ],
)
def test_what_a_user_gets_wrong_is_one_line_with_exit_code_2_and_nothing_is_written(
    tiny_recipe: Path, tmp_path: Path, arguments: list[str], prepare: Any, expected: str
) -> None:
    coco_recipe(tiny_recipe, tmp_path)
    if prepare:
        prepare(tmp_path)
    ended = run(
        "run_study", *(str(a).format(recipe=tiny_recipe) if a == "{recipe}" else a for a in arguments), folder=tmp_path
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert expected in ended.stderr
    if (tmp_path / "smnas.db").exists():
        assert optuna.get_all_study_names(f"sqlite:///{tmp_path}/smnas.db") == []


def test_a_folder_for_temporary_files_in_which_sockets_cannot_be_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / ("long" * 25)
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    ended = run_alone("run_study", "digits", "--dry-run", folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == (
        f"error: TMPDIR {temporary}: AF_UNIX path too long; expected a folder with a shorter name\n"
    )


def test_a_study_of_another_recipe_is_refused_and_left_as_it_is(tiny_recipe: Path, tmp_path: Path) -> None:
    assert run("run_study", tiny_recipe, "--n-trials", 1, folder=tmp_path).returncode == 0
    before = [(trial.number, trial.state, trial.values) for trial in load(tmp_path).trials]
    refused = run("run_study", tiny_recipe, "--set", "structural.training.lr=0.5", folder=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: study 'tiny/structural': made from a recipe that differs in structural.training.lr; give those their "
        "former values to resume it, or start another study with --set name=\n"
    )
    assert [(trial.number, trial.state, trial.values) for trial in load(tmp_path).trials] == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    refused = run("run_study", tiny_recipe, "--output", "locked/out", folder=tmp_path)
    assert refused.returncode == 2
    assert "--output locked/out: cannot be written: Permission denied" in refused.stderr
