import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smnas_optuna.errors import UserError
from smnas_optuna.recipe.recipe import Recipe
from smnas_optuna.recipe.recipe_file import load_recipe, shipped_recipes
from smnas_optuna.recipe.settings import CocoDataset, DigitsDataset
from smnas_optuna.search_space.structural import StructuralSpace

TEXT = """\
name: cells
dataset:
  kind: coco
  root: data
  train: {annotations: train.json, images: train}
  val: {annotations: val.json, images: val}
device:
  timing:
    rounds: 3
structural:
  trials: 20
  space:
    backbones: [ResNet18, ResNet50]
    input_sizes: [512x512, 800x600]
  training:
    epochs: 4
    batch_size: 8
    lr: 0.02
"""

Loader = Callable[..., Recipe]


@pytest.fixture
def load(tmp_path: Path) -> Loader:
    """Return a function that loads a recipe from its text, with overrides."""

    def load_text(text: str = TEXT, *overrides: str) -> Recipe:
        path = tmp_path / "cells.yaml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(str(path), overrides)

    return load_text


@pytest.fixture
def error_of(load: Loader, tmp_path: Path) -> Callable[..., str]:
    """Return a function that returns the error message of a recipe, without the folder of its file."""

    def refuse(text: str = TEXT, *overrides: str) -> str:
        with pytest.raises(UserError) as refused:
            load(text, *overrides)
        message = str(refused.value)
        assert message.isprintable()
        return message.replace(f"{tmp_path}/", "")

    return refuse


def value_at(recipe: Recipe, key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_loads_by_its_name(name: str) -> None:
    assert load_recipe(name).name == name


def test_coco_is_the_papers_structural_search() -> None:
    recipe = load_recipe("coco")
    assert isinstance(recipe.dataset, CocoDataset)
    assert recipe.device.gpus_per_trial == 8
    structural, training = recipe.structural, recipe.structural.training
    assert structural.trials == 500
    assert structural.objectives == ("map", "latency_ms")
    assert structural.space == StructuralSpace()
    assert structural.space.size == 10_332
    assert (structural.detector.norm, structural.detector.weight_standardization) == ("BN", False)
    assert (training.epochs, training.lr, training.final_lr) == (5, 0.04, 0.0001)
    assert (training.momentum, training.weight_decay) == (0.9, 0.0001)
    assert training.batch_size == 8 * 4
    assert training.weights == "imagenet"
    assert "800x600 ResNet50 FPN(P1-P5,c=256) RPN 2FC" in structural.seeds


def test_omitted_keys_of_a_recipe_have_defaults(load: Loader) -> None:
    recipe = load()
    assert recipe.device.kind == "auto"
    assert (recipe.device.timing.rounds, recipe.device.timing.images) == (3, 100)
    assert recipe.structural.sampler == "pop"
    assert recipe.structural.space.backbones == ("ResNet18", "ResNet50")
    assert recipe.structural.space.heads == StructuralSpace().heads


def test_a_path_is_read_even_if_its_file_has_the_name_of_a_shipped_recipe(tmp_path: Path) -> None:
    (tmp_path / "coco").write_text(TEXT, encoding="utf-8")
    assert load_recipe(str(tmp_path / "coco")).name == "cells"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("name=blood_cells.v2-1", "blood_cells.v2-1"),
        ("dataset.root=/data/a=b", Path("/data/a=b")),
        ("dataset.val.images=other", Path("other")),
        ("device.kind=cpu", "cpu"),
        ("device.cpu_threads=1", 1),
        ("device.timing.rounds=7", 7),
        ("structural.trials=3", 3),
        ("structural.sampler=tpe", "tpe"),
        ("structural.objectives=[map_50, flops, params]", ("map_50", "flops", "params")),
        ("structural.seeds=[512x512 ResNet18 RPN 2FC]", ("512x512 ResNet18 RPN 2FC",)),
        ("structural.space.input_sizes=[640x480]", ("640x480",)),
        ("structural.detector.anchor_scale=4", 4.0),
        ("structural.training.amp=true", True),
        ("structural.training.lr=1e-3", 0.001),
        ("structural.training.clip_gradients=35", 35.0),
        ("structural.training.clip_gradients=null", None),
        ("structural.training.weights=none", "none"),
        (
            "structural.training.weights={ResNet18: a.pth, ResNet50: b.pth}",
            {"ResNet18": Path("a.pth"), "ResNet50": Path("b.pth")},
        ),
    ],
)
def test_an_override_sets_its_key_and_no_other(load: Loader, override: str, value: Any) -> None:
    key = override.partition("=")[0]
    recipe = load(TEXT, override)
    assert value_at(recipe, key) == value
    changed = recipe.differing_keys(load().model_dump(mode="json"), "structural")
    assert all(name == key or name.startswith(f"{key}.") for name in changed)


def test_overrides_hold_in_the_order_given(load: Loader) -> None:
    recipe = load(TEXT, "structural.training={epochs: 1, batch_size: 1, lr: 1}", "structural.training.epochs=9")
    assert (recipe.structural.training.epochs, recipe.structural.training.lr) == (9, 1.0)


def test_an_override_may_replace_the_whole_data_set(load: Loader) -> None:
    recipe = load(TEXT, "dataset={kind: digits, classes: 4}")
    assert recipe.dataset == DigitsDataset(kind="digits", classes=4)


def test_an_override_fills_a_section_left_empty(load: Loader) -> None:
    text = TEXT.replace("  timing:\n    rounds: 3\n", "")
    assert load(text, "device.timing.rounds=4").device.timing.rounds == 4


def test_an_override_leaves_alone_what_an_alias_shares(load: Loader) -> None:
    text = TEXT.replace("train: {", "train: &split {").replace(
        "val: {annotations: val.json, images: val}", "val: *split"
    )
    recipe = load(text, "dataset.val.images=val")
    assert isinstance(recipe.dataset, CocoDataset)
    assert recipe.dataset.val.images == Path("val")
    assert recipe.dataset.train.images == Path("train")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("structural.trials", "--set 'structural.trials': expected key.path=value"),
        ("=3", "--set '=3': expected key.path=value"),
        ("structural.seeds=[", "--set 'structural.seeds=[': the value is not valid YAML"),
        ("structural.trials=2024-13-45", "--set 'structural.trials=2024-13-45': the value is not valid YAML"),
        ("device={kind: cpu, kind: cuda}", "--set 'device={kind: cpu, kind: cuda}': the value is not valid YAML"),
        ("name.first=x", "--set 'name.first=x': name holds a value, not keys"),
        ("structural.space.backbones.0=x", "--set 'structural.space.backbones.0=x': backbones holds a value, not keys"),
        ("structural.trials=many", "cells.yaml: structural.trials: found 'many', expected a valid integer"),
        ("structural.trials=", "cells.yaml: structural.trials: found None, expected a valid integer"),
        ("structural.trails=3", "cells.yaml: structural.trails: unknown key; did you mean trials?"),
        ("device.timing={round: 3}", "cells.yaml: device.timing.round: unknown key; did you mean rounds?"),
        (
            "cluster.nodes=3",
            "cells.yaml: cluster: unknown key; expected one of imports, name, dataset, device, constraints, structural",
        ),
        ("structural=3", "cells.yaml: structural: found 3, expected"),
    ],
)
def test_the_error_of_a_bad_override_has_its_key_and_no_line(
    error_of: Callable[..., str], override: str, message: str
) -> None:
    assert error_of(TEXT, override).startswith(message)


@pytest.mark.parametrize("recipe", ["cocoo", "studies/nothing.yaml", "coco.yaml"])
def test_the_error_of_a_missing_recipe_lists_the_shipped_ones(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    with pytest.raises(UserError) as refused:
        load_recipe(recipe)
    assert str(refused.value) == (
        f"recipe {recipe!r}: no such file, and the shipped recipes are {', '.join(shipped_recipes())}"
    )
    assert "coco" in shipped_recipes()


def test_a_folder_or_a_picture_is_no_recipe(tmp_path: Path) -> None:
    picture = tmp_path / "cells.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    for path in (tmp_path, picture):
        with pytest.raises(UserError, match=re.escape(f"recipe {str(path)!r}: cannot be read: ")):
            load_recipe(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [cells\ndataset: x\n", "cells.yaml:2: not valid YAML: expected ',' or ']'"),
        ("name: cells\n\tdataset: x\n", "cells.yaml:2: not valid YAML: found character '\\t'"),
        ("name: cells\ndataset: *missing\n", "cells.yaml:2: not valid YAML: found undefined alias 'missing'"),
        ("name: !!python/name:os.system\n", "cells.yaml:1: not valid YAML: could not determine a constructor"),
        ("name: cells\n\nextra: a\x00b\n", "cells.yaml:3: not valid YAML: special characters are not allowed"),
        ("name: cells\nextra: 2024-13-45\n", "cells.yaml:2: not valid YAML: month must be in 1..12"),
        ("name: cells\n? [a]\n: b\n", "cells.yaml:2: not valid YAML: found unhashable key"),
        ("name: cells\n---\nname: cells\n", "cells.yaml:2: not valid YAML: but found another document"),
        ("", "cells.yaml: expected keys such as name, dataset and structural, found NoneType"),
        ("# nothing\n", "cells.yaml: expected keys such as name, dataset and structural, found NoneType"),
        ("- name: cells\n", "cells.yaml: expected keys such as name, dataset and structural, found list"),
        ("cells\n", "cells.yaml: expected keys such as name, dataset and structural, found str"),
    ],
)
def test_the_error_of_a_text_that_is_no_yaml_mapping_has_its_line(
    error_of: Callable[..., str], text: str, message: str
) -> None:
    assert error_of(text).startswith(message)


@pytest.mark.parametrize(
    ("old", "new", "line", "key"),
    [
        ("device:", "name: blood\ndevice:", 7, "name"),
        ("  root: data", "  root: data\n  root: data", 5, "root"),
        ("    epochs: 4", "    epochs: 4\n    lr: 0.1", 19, "lr"),
        ("images: val}", "images: val, annotations: x}", 6, "annotations"),
        ("    backbones:", "    input_sizes: [64x48]\n    backbones:", 15, "input_sizes"),
        ("    rounds: 3", '    rounds: 3\n    "rounds": 4', 10, "rounds"),
    ],
)
def test_a_key_given_twice_is_refused_at_its_second_line(
    error_of: Callable[..., str], old: str, new: str, line: int, key: str
) -> None:
    assert error_of(TEXT.replace(old, new, 1)) == f"cells.yaml:{line}: not valid YAML: key {key!r} given twice"


def test_a_key_of_a_yaml_merge_may_be_given_again(load: Loader) -> None:
    text = TEXT.replace("train: {", "train: &train {").replace(
        "val: {annotations: val.json, images", "val: {<<: *train, images"
    )
    recipe = load(text)
    assert isinstance(recipe.dataset, CocoDataset)
    assert recipe.dataset.val.annotations == Path("train.json")
    assert recipe.dataset.val.images == Path("val")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: cells\n", "", "cells.yaml: name: this key is missing"),
        ("name: cells", "name: blood cells", "cells.yaml:1: name: found 'blood cells', expected text of the form"),
        ("  train:", "  trian:", "cells.yaml:5: dataset.trian: unknown key; did you mean train? (and 1 more)"),
        ("  kind: coco\n", "", "cells.yaml:2: dataset: found no kind, expected one of bdd, coco, digits, folder, voc"),
        (
            "kind: coco",
            "kind: yolo",
            "cells.yaml:2: dataset: found kind 'yolo', expected one of bdd, coco, digits, folder, voc",
        ),
        (
            "kind: coco",
            "kind: coco\n  digits: 3",
            "cells.yaml:4: dataset.digits: unknown key; expected one of kind, root",
        ),
        ("{annotations: val.json, ", "{", "cells.yaml:6: dataset.val.annotations: this key is missing"),
        ("images: val}", "image: val}", "cells.yaml:6: dataset.val.image: unknown key; did you mean images?"),
        ("rounds: 3", "rounds: 1", "cells.yaml:9: device.timing.rounds: found 1, expected greater than or equal to 2"),
        ("  timing:\n    rounds: 3\n", "", "cells.yaml:7: device: found None, expected keys with values"),
        ("rounds: 3", "round: 3", "cells.yaml:9: device.timing.round: unknown key; did you mean rounds?"),
        ("structural:", "structure:", "cells.yaml:10: structure: unknown key; did you mean structural? (and 1 more)"),
        (
            "structural:",
            "a.b: 3\nstructural:",
            "cells.yaml:10: a.b: unknown key; expected one of imports, name, dataset",
        ),
        ("structural:", "3: 4\nstructural:", "cells.yaml:10: 3: found 3, expected text as a key"),
        ("  trials: 20\n", "", "cells.yaml:10: structural.trials: this key is missing"),
        ("trials: 20", "trials: 0", "cells.yaml:11: structural.trials: found 0, expected greater than 0"),
        ("trials: 20", "trials: [20]", "cells.yaml:11: structural.trials: found [20], expected a valid integer"),
        (
            "trials: 20",
            "trails: 20",
            "cells.yaml:11: structural.trails: unknown key; did you mean trials? (and 1 more)",
        ),
        (
            "trials: 20",
            "trials: 20\n  sampler: grid",
            "cells.yaml:12: structural.sampler: found 'grid', expected 'pop'",
        ),
        (
            "trials: 20",
            "trials: 20\n  objectives: []",
            "cells.yaml:12: structural.objectives: found [], expected at least 1 in the list",
        ),
        (
            "trials: 20",
            "trials: 20\n  objectives: [map, flops, map]",
            "cells.yaml:12: structural.objectives: an objective is listed more than once",
        ),
        (
            "trials: 20",
            "trials: 20\n  objectives:\n    - map\n    - speed",
            "cells.yaml:14: structural.objectives.1: found 'speed', expected 'map', 'map_50'",
        ),
        ("[ResNet18, ResNet50]", "[]", "cells.yaml:13: structural.space.backbones: found [], expected at least 1"),
        ("[ResNet18, ResNet50]", "ResNet18", "cells.yaml:13: structural.space.backbones: found 'ResNet18', expected"),
        (
            "ResNet50]",
            "VGG16]",
            "cells.yaml:13: structural.space.backbones.1: found 'VGG16', expected one of ",
        ),
        ("ResNet50]", "ResNet18]", "cells.yaml:13: structural.space.backbones: ResNet18 listed more than once"),
        ("800x600]", "800]", "cells.yaml:14: structural.space.input_sizes.1: found 800, expected a valid string"),
        (
            "800x600]",
            "800*600]",
            "cells.yaml:14: structural.space.input_sizes.1: input size '800*600': expected WIDTHx",
        ),
        (
            "    input_sizes",
            "    heads: [2FC]\n    input_sizes",
            "cells.yaml:12: structural.space: heads and rpns: the RPN 'none' goes with ",
        ),
        ("lr: 0.02", "lr: -1", "cells.yaml:18: structural.training.lr: found -1, expected greater than 0"),
        (
            "lr: 0.02",
            "lr: 0.02\n    momentum: 1",
            "cells.yaml:19: structural.training.momentum: found 1, expected less",
        ),
        (
            "lr: 0.02",
            "lr: 0.02\n    weights: coco",
            "cells.yaml:19: structural.training.weights: found 'coco', expected",
        ),
    ],
)
def test_the_error_of_a_wrong_value_has_its_line_and_key(
    error_of: Callable[..., str], old: str, new: str, message: str
) -> None:
    assert TEXT.count(old) == 1
    assert error_of(TEXT.replace(old, new)).startswith(message)


@pytest.mark.parametrize(
    ("seed", "reason"),
    [
        ("512x512 ResNet34 RPN 2FC", "backbone 'ResNet34' is not among ResNet18, ResNet50"),
        ("64x48 ResNet18 RPN 2FC", "input_size '64x48' is not among 512x512, 800x600"),
        ("512x512 ResNet18(w=16) RPN 2FC", "ResNet18(w=16) does not have base_channels 64"),
        ("512x512 ResNet18 FPN(P2-P5,c=64) RPN 2FC", "FPN(P2-P5,c=64) does not have fpn_channels 256"),
        ("512x512 ResNet18 FPN RPN 2FC", "neck 'FPN': expected FPN("),
        ("ResNet18", "expected INPUT_SIZE BACKBONE [NECK] [RPN] HEAD"),
    ],
)
def test_a_seed_outside_the_space_is_refused(error_of: Callable[..., str], seed: str, reason: str) -> None:
    text = TEXT.replace("trials: 20", f"trials: 20\n  seeds: ['{seed}']")
    message = error_of(text)
    assert message.startswith(f"cells.yaml:10: structural: seed '{seed}' does not fit the space: ")
    assert reason in message


@pytest.mark.parametrize("weights", ["{ResNet18: a.pth}", "{ResNet18: a, ResNet50: b, ResNet101: c}", "{}"])
def test_weights_have_to_be_given_for_exactly_the_backbones_of_the_space(
    error_of: Callable[..., str], weights: str
) -> None:
    message = error_of(TEXT, f"structural.training.weights={weights}")
    assert "training.weights names" in message
    assert message.endswith("expected a file for each of ResNet18, ResNet50")


def test_imagenet_weights_do_not_fit_narrowed_backbones(error_of: Callable[..., str], load: Loader) -> None:
    narrowed = "structural.space.base_channels=16"
    message = "structural: training.weights: imagenet weights fit base_channels 64 only; expected none"
    assert error_of(TEXT, narrowed, "structural.training.weights=imagenet").endswith(message)
    assert load(TEXT, narrowed).structural.space.base_channels == 16


@pytest.mark.parametrize("other", ["structural.detector.norm=GN", "structural.detector.weight_standardization=true"])
def test_imagenet_weights_do_not_fit_other_layers_than_they_were_trained_with(
    other: str, error_of: Callable[..., str], load: Loader
) -> None:
    message = error_of(TEXT, other, "structural.training.weights=imagenet")
    assert "imagenet weights were trained with norm BN and no weight_standardization" in message
    assert load(TEXT, other).structural.training.weights == "auto"


def test_backbones_with_layers_of_their_own_have_imagenet_weights_whatever_the_others_have(load: Loader) -> None:
    own = "structural.space.backbones=[timm:convnext_tiny]"
    recipe = load(
        TEXT, own, "structural.seeds=[]", "structural.detector.norm=GN", "structural.training.weights=imagenet"
    )
    assert recipe.structural.training.weights == "imagenet"


@pytest.mark.parametrize(
    ("families", "expected"),
    [
        (
            "{RTMdet: {lr: 1}}",
            "training.families: nothing in the space begins with 'RTMdet'; expected the",
        ),
        (
            "{ResNet18: {learning_rate: 1}}",
            "structural.training.families.ResNet18.learning_rate: unknown key",
        ),
        ("{ResNet18: {optimizer: AdamW}}", "structural.training.families.ResNet18: optimizer: found AdamW without lr"),
        ("{ResNet18: {lr: fast}}", "structural.training.families.ResNet18.lr: "),
        ("{ResNet18: {lr: 1, optimizer: [SGD]}}", "structural.training.families.ResNet18.optimizer: "),
    ],
)
def test_a_mistake_in_the_settings_of_a_family_is_named(
    families: str, expected: str, error_of: Callable[..., str]
) -> None:
    assert expected in error_of(TEXT, f"structural.training.families={families}")


FREE = {
    "structural.trials": 7,
    "structural.sampler": "random",
    "structural.seeds": ["512x512 ResNet18 RPN 2FC"],
    "structural.training.loader_workers": 0,
    "structural.training.time_limit_minutes": 9.5,
    "device.memory_gb": 10.5,
}
MEANING = {
    "name": "blood",
    "dataset.root": "elsewhere",
    "dataset.train.annotations": "other.json",
    "dataset.val.images": "other",
    "device.kind": "cpu",
    "device.cpu_threads": 3,
    "device.timing.rounds": 5,
    "structural.objectives": ["map", "flops"],
    "structural.space.input_sizes": ["512x512"],
    "structural.space.fpn_channels": 64,
    "structural.detector.anchor_scale": 4.0,
    "structural.detector.proposals": 300,
    "structural.training.epochs": 5,
    "structural.training.lr": 0.5,
    "structural.training.clip_gradients": 35.0,
    "structural.training.weights": "none",
    "structural.training.amp": True,
    "structural.training.seed": 1,
}


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.sampled_from([*FREE, *MEANING])))
def test_exactly_the_keys_that_change_the_meaning_of_trials_differ(load: Loader, keys: set[str]) -> None:
    recorded = json.loads(json.dumps(load().model_dump(mode="json")))
    values = FREE | MEANING
    overrides = [f"{key}={yaml.safe_dump(values[key], default_flow_style=True)}" for key in sorted(keys)]
    changed = load(TEXT, *overrides)
    assert set(changed.differing_keys(recorded, "structural")) == keys & set(MEANING)
    assert len(changed.differing_keys(recorded, "structural")) == len(keys & set(MEANING))
    differing = changed.differing_keys(recorded, "structural")
    assert load().differing_keys(changed.model_dump(mode="json"), "structural") == differing


def test_a_key_that_only_one_version_of_the_package_knows_differs(load: Loader) -> None:
    recorded = load().model_dump(mode="json")
    del recorded["device"]["cpu_threads"]
    recorded["structural"]["detector"]["soft_nms"] = True
    del recorded["structural"]["seeds"]
    assert load().differing_keys(recorded, "structural") == ["device.cpu_threads", "structural.detector.soft_nms"]


def test_a_key_that_an_older_recorded_recipe_lacks_has_its_default(load: Loader) -> None:
    recorded = load().model_dump(mode="json")
    del recorded["structural"]["training"]["base_batch_size"]
    assert load().differing_keys(recorded, "structural") == []
    changed = load(TEXT, "structural.training.base_batch_size=64")
    assert changed.differing_keys(recorded, "structural") == ["structural.training.base_batch_size"]


def test_a_stage_ignores_the_keys_of_other_stages(load: Loader) -> None:
    modular = "modular={trials: 3, training: {epochs: 9, batch_size: 8, lr: 0.24, weights: none}}"
    recorded = load(TEXT, modular).model_dump(mode="json")
    changed = load(TEXT, modular, "modular.training.epochs=12", "modular.trials=4", "structural.training.epochs=7")
    assert changed.differing_keys(recorded, "modular") == ["modular.training.epochs"]
    assert changed.differing_keys(recorded, "structural") == ["structural.training.epochs"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("modular.training.weights=imagenet", "modular: training.weights: searched backbones have no pretrained"),
        ("modular.space.basicblock.blocks=[1-3, 1-4, 1-5, 3-4]", "modular.space does not contain candidates with"),
        ("modular.space.fpn_channels=[32]", "modular.space does not contain candidates with"),
        ("modular.space.basicblock.block=3", "unknown key; did you mean blocks?"),
        ("modular.trial=3", "unknown key; did you mean trials?"),
        ("modular.objectives=[map, map]", "an objective is listed more than once"),
    ],
)
def test_an_impossible_stage_two_is_refused(load: Loader, override: str, expected: str) -> None:
    modular = "modular={trials: 3, training: {epochs: 9, batch_size: 8, lr: 0.24, weights: none}}"
    with pytest.raises(UserError) as error:
        load(TEXT, modular, override)
    assert expected in str(error.value)


def test_a_list_is_no_optimizer(error_of: Callable[..., str]) -> None:
    training = "structural.training={epochs: 9, batch_size: 8, lr: 0.24, optimizer: [SGD]}"
    assert "structural.training.optimizer: " in error_of(TEXT, training)
