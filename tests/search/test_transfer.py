import copy
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from mmengine.config import Config
from optuna.storages import RDBStorage

from smnas_optuna.detector.zoo import DETECTORS
from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.recipe import Recipe
from smnas_optuna.search.listed import Listed
from smnas_optuna.search.search import required_weights
from smnas_optuna.search.studies import open_study, search_of
from smnas_optuna.search.transfer import transfer_search
from smnas_optuna.study.storage import open_storage
from smnas_optuna.training.job import PretrainedWeights
from tests.commands import run
from tests.conftest import TINY

BASELINE = TINY["transfer"]["baselines"][0]


def other_recipe() -> dict[str, Any]:
    """The tiny recipe for another data set, of three classes."""
    recipe = copy.deepcopy(TINY)
    recipe["name"] = "other"
    recipe["dataset"]["classes"] = 3
    return recipe


@pytest.fixture
def folder(searched: Path, tmp_path: Path) -> Path:
    """A folder whose database has a search of two trials, with ``other.yaml`` beside it."""
    shutil.copy(searched / "smnas.db", tmp_path)
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other_recipe()), encoding="utf-8")
    return tmp_path


@pytest.fixture
def storage(folder: Path) -> RDBStorage:
    return open_storage(f"sqlite:///{folder}/smnas.db")


def test_a_found_detector_is_trained_on_other_data_beside_the_baseline(folder: Path) -> None:
    found = optuna.load_study(study_name="tiny/structural", storage=f"sqlite:///{folder}/smnas.db")
    first = run("run_study", "other.yaml", "--stage", "transfer", "--from", "tiny/structural:0", folder=folder)
    assert first.returncode == 0, first.stderr
    study = optuna.load_study(study_name="other/transfer", storage=f"sqlite:///{folder}/smnas.db")
    architectures = [trial.user_attrs["architecture"] for trial in study.trials]
    assert architectures == [BASELINE, found.trials[0].user_attrs["architecture"]]
    assert all(trial.values == [trial.user_attrs["map"], trial.user_attrs["latency_ms"]] for trial in study.trials)
    config = Config.fromfile(str(folder / "work_dirs/other/transfer/trial_00001/config.py"))
    assert config.model.roi_head.bbox_head.num_classes == 3
    # The table: the found one with its distance from the baseline.
    assert "tiny/structural trial 0" in first.stdout.replace("\n", "")
    assert " x)" in first.stdout

    # What is trained stays so; another source is trained beside it.
    again = run("run_study", "other.yaml", "--stage", "transfer", "--from", "tiny/structural:1", folder=folder)
    assert again.returncode == 0, again.stderr
    assert "other/transfer: 2 of 3 trials done" in again.stdout
    assert len(study.get_trials()) == 3
    status = run("run_study", "other.yaml", "--status", folder=folder)
    assert "other/transfer: 3 of 3 trials done" in status.stdout
    report = run("report", "--study", "other/transfer", folder=folder)
    assert report.returncode == 0, report.stderr


def test_sources_are_trials_the_best_the_front_and_the_zoo(storage: RDBStorage) -> None:
    recipe = Recipe.model_validate(other_recipe())
    found = optuna.load_study(study_name="tiny/structural", storage=storage)
    best = max(found.best_trials, key=lambda trial: trial.values[0])

    def listed(*sources: str) -> list[tuple[str, str]]:
        transferred = transfer_search(storage, recipe, sources).listed
        return [(str(each.architecture), each.source) for each in transferred]

    assert listed() == [(BASELINE, "baseline")]
    assert listed("e2")[1:] == [(str(DETECTORS["E2"].architecture), "e2")]
    assert listed("tiny/structural:best")[1:] == [
        (best.user_attrs["architecture"], f"tiny/structural trial {best.number}")
    ]
    front = [trial.user_attrs["architecture"] for trial in sorted(found.best_trials, key=lambda trial: trial.number)]
    # Named twice it is trained once.
    assert [text for text, _ in listed("tiny/structural:front", "tiny/structural:front")[1:]] == front


def test_the_list_of_a_study_keeps_its_order_when_the_baselines_change(storage: RDBStorage) -> None:
    content = other_recipe()
    before = transfer_search(storage, Recipe.model_validate(content), ["tiny/structural:0"])
    study = open_study(storage, before)
    content["transfer"]["baselines"] = ["64x48 ResNet18(w=8) RPN 2FC"]
    after = transfer_search(storage, Recipe.model_validate(content), [])
    added = Listed(Architecture.parse("64x48 ResNet18(w=8) RPN 2FC"), "baseline")
    assert after.listed == (*before.listed, added)
    assert [trial.system_attrs["fixed_params"]["architecture"] for trial in open_study(storage, after).trials] == [
        0,
        1,
        2,
    ]
    assert search_of(study) == after
    # A run that has not seen what another has added meanwhile does not undo it.
    with pytest.raises(UserError, match="another run has added architectures meanwhile"):
        open_study(storage, before)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tiny/modular/C0:best", "--from tiny/modular/C0:best: 'tiny/modular/C0': no such study; the database has"),
        ("tiny/structural:9", "--from tiny/structural:9: expected best, front or a finished trial of 0, 1"),
        ("tiny/structural:worst", "expected best, front or a finished trial of 0, 1"),
        ("E9", "--from 'E9': no such detector"),
        ("FSAF", "--from FSAF: has no architecture"),
    ],
)
def test_a_source_that_is_none_is_told(storage: RDBStorage, source: str, message: str) -> None:
    with pytest.raises(UserError) as told:
        transfer_search(storage, Recipe.model_validate(other_recipe()), [source])
    assert message in str(told.value)


def test_a_part_that_no_imported_module_has_registered_is_told_with_the_source(storage: RDBStorage) -> None:
    study = optuna.create_study(study_name="own", storage=storage, directions=["maximize", "minimize"])
    own = "64x48 ResNet18(w=8) OwnFPN(P2-P4,c=16) RPN 2FC"
    study.add_trial(optuna.trial.create_trial(values=[0.1, 1.0], user_attrs={"architecture": own}))
    with pytest.raises(UserError, match=r"^--from own:best: .*OwnFPN.* needs its module among imports$"):
        transfer_search(storage, Recipe.model_validate(other_recipe()), ["own:best"])


def test_a_searched_backbone_begins_with_the_weights_that_the_recipe_gives_it(storage: RDBStorage) -> None:
    content = other_recipe()
    content["transfer"]["detector"] = {}
    content["transfer"]["training"] = {**content["transfer"]["training"], "weights": "imagenet"}
    content["transfer"]["baselines"] = ["800x600 ResNet50 FPN(P1-P5,c=256) RPN 2FC"]
    found = DETECTORS["E2"].architecture
    assert found is not None
    content["transfer"]["pretrained"] = {str(found.backbone): "E2/backbone.pth"}
    search = transfer_search(storage, Recipe.model_validate(content), ["E2", "E3"])
    published, searched, other = (search.pretrained_weights(each.backbone) for each in search.starts)
    assert published == PretrainedWeights(
        search.starts[0].backbone, "torchvision://resnet50", "transfer.training.weights"
    )
    assert searched == PretrainedWeights(found.backbone, "E2/backbone.pth", "transfer.pretrained")
    assert other is None
    assert required_weights(search) == (published, searched)


def with_weights(content: dict[str, Any], *names: str) -> Recipe:
    """Return the recipe with pre-trained weights for the backbones of zoo detectors."""
    backbones = [architecture.backbone for name in names if (architecture := DETECTORS[name].architecture)]
    content["transfer"]["pretrained"] = {str(backbone): f"{backbone}.pth" for backbone in backbones}
    return Recipe.model_validate(content)


def test_what_comes_in_later_brings_its_weights_along(storage: RDBStorage) -> None:
    content = other_recipe()
    for recipe, source in (
        (with_weights(content, "E2"), "E2"),
        (with_weights(content, "E2", "E3"), "E3"),
        (with_weights(content, "E2", "E3"), "E3"),
    ):
        search = transfer_search(storage, recipe, [source])
        study = open_study(storage, search)
    recorded = search_of(study)
    assert recorded is not None
    assert recorded.recipe == recipe
    # But of what is there the weights stay what they were.
    changed = transfer_search(storage, with_weights(content, "E3"), [])
    with pytest.raises(UserError, match=r"made from a recipe that differs in transfer\.pretrained\.basicblock_56_"):
        open_study(storage, changed)


@pytest.mark.parametrize(
    ("pretrained", "message"),
    [
        ("{E2: a.pth}", "transfer.pretrained: backbone 'E2': "),
        ("{ResNet34: a.pth}", "transfer.pretrained.ResNet34: nothing has this backbone; expected MobileNetV2(w=8)"),
        ("{ResNet34: a.pth, 'ResNet34(w=64)': b.pth}", "transfer.pretrained: a backbone is listed more than once"),
    ],
)
def test_weights_of_a_backbone_that_nothing_has_are_one_line(folder: Path, pretrained: str, message: str) -> None:
    given = f"transfer.pretrained={pretrained}"
    ended = run("run_study", "other.yaml", "--stage", "transfer", "--set", given, folder=folder)
    assert ended.returncode == 2, ended.stdout
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_dry_run_lists_what_would_be_trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    found = optuna.load_study(study_name="tiny/structural", storage=f"sqlite:///{folder}/smnas.db").trials[0]
    sources = ("--from", "tiny/structural:0", "--from", "E0")
    dry = run("run_study", "other.yaml", "--stage", "transfer", *sources, "--dry-run", folder=folder)
    assert (dry.returncode, dry.stderr) == (0, "")
    assert "study other/transfer: 3 detectors\nall of them, as detectors of 3 classes:\n" in dry.stdout
    assert f"{BASELINE}  (baseline, from scratch)" in dry.stdout
    assert f"{found.user_attrs['architecture']}  (tiny/structural trial 0, from scratch)" in dry.stdout
    assert "a run would evaluate all of them: train each for 1 epochs" in dry.stdout
    assert optuna.get_all_study_names(f"sqlite:///{folder}/smnas.db") == ["tiny/structural"]
    # Without a database there are the zoo's.
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(folder / "other.yaml", elsewhere)
    dry = run("run_study", "other.yaml", "--stage", "transfer", "--from", "E0", "--dry-run", folder=elsewhere)
    assert "study other/transfer: 2 detectors" in dry.stdout
    none = run("run_study", "other.yaml", "--stage", "transfer", *sources, "--dry-run", folder=elsewhere)
    assert none.stderr == (
        "error: --from tiny/structural:0: 'tiny/structural': no such study; the database has no study at all\n"
    )
    assert not (elsewhere / "smnas.db").exists()


def test_what_cannot_be_transferred_is_one_line(folder: Path) -> None:
    for arguments, message in (
        (["other.yaml", "--from", "E2"], "--from E2: is for --stage transfer"),
        (["digits", "--stage", "transfer"], "--stage transfer: recipe 'digits' has no section transfer"),
        (
            ["other.yaml", "--stage", "transfer", "--set", "transfer.baselines=[]"],
            "--stage transfer: nothing to train; expected --from with",
        ),
    ):
        ended = run("run_study", *arguments, folder=folder)
        assert ended.returncode == 2, ended.stdout
        assert message in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
