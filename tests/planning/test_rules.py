"""The rules of plans, and that every plan is a recipe that can be run."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from smnas_optuna.parts.architecture import InputSize
from smnas_optuna.parts.detector import Detector
from smnas_optuna.planning import rules
from smnas_optuna.planning.facts import DataFacts, Speed, data_facts
from smnas_optuna.planning.plan import Plan, make_plan
from smnas_optuna.recipe.recipe_file import parse_recipe
from smnas_optuna.recipe.settings import FolderDataset
from smnas_optuna.training.job import Machine
from tests.data_folders import write_json

ROOT = Path(__file__).parents[2]
CPU = Machine("cpu", "EPYC", 0, 8.0, 2)
GPU = Machine("cuda", "H100", 1, 80.0, 16)


def facts(**changes: Any) -> DataFacts:
    known = {"train_images": 500, "val_images": 100, "classes": 3, "width": 640, "height": 480}
    sides = {"small_side": 20.0, "median_side": 40.0, "crowding": 10}
    return DataFacts(**{**known, **sides, **changes})


def plan(data: DataFacts, machine: Machine, budget: float, seconds: float = 0.1, *, weights: bool = True) -> Plan:
    def measure(texts: Any, batch: int, detector: Detector) -> Speed:
        return Speed(dict.fromkeys(texts, seconds))

    known = dict.fromkeys(rules.candidates(machine.kind), "ImageNet") if weights else {}
    dataset = FolderDataset(kind="folder", root=Path("/photos"))
    return make_plan("photos", dataset, data, machine, known, budget, measure)


@settings(max_examples=100, deadline=None)
@given(
    train=st.integers(1, 200_000),
    sides=st.tuples(st.integers(48, 6000), st.integers(48, 6000)),
    share=st.floats(0.003, 0.9),
    machine=st.sampled_from([CPU, GPU, Machine("cuda", "A", 8, 24.0, 64)]),
    budget=st.floats(60, 1e6),
    seconds=st.floats(1e-4, 10),
    weights=st.booleans(),
)
def test_every_plan_is_a_recipe_that_can_be_run(
    train: int, sides: tuple[int, int], share: float, machine: Machine, budget: float, seconds: float, weights: bool
) -> None:
    side = share * max(sides)
    data = facts(
        train_images=train,
        val_images=max(1, train // 5),
        width=sides[0],
        height=sides[1],
        small_side=side / 2,
        median_side=side,
    )
    made = plan(data, machine, budget, seconds, weights=weights)
    text = made.text(str(machine), budget)
    assert yaml.safe_load(text) == made.recipe
    recipe = parse_recipe("recipe.yaml", text)
    structural = recipe.structural
    assert structural.trials == max(1, made.schedule.trials)
    assert len(structural.seeds) in (2, 3)
    sizes = [InputSize.parse(each) for each in structural.space.input_sizes]
    assert 1 <= len(sizes) <= 4
    assert [max(each.width, each.height) for each in sizes] == sorted({max(each.width, each.height) for each in sizes})
    for decision in made.decisions:
        assert decision.reason
        assert "\n" not in decision.reason
    assert len({decision.key for decision in made.decisions}) == len(made.decisions)
    seen = structural.training.epochs * min(train, made.schedule.train_images)
    assert seen <= max(rules._FEWEST_STEPS, rules._MOST_STEPS) * structural.training.batch_size * 1.5 + train


def test_objects_are_large_enough_at_the_input_sizes() -> None:
    tiny = rules.input_sizes(facts(width=1000, height=1000, small_side=5, median_side=10), "cuda")
    assert tiny.value[-1] == "1504x1504"  # enlarged, but not to 3,200 pixels
    large = rules.input_sizes(facts(width=4000, height=3000, small_side=400, median_side=900), "cuda")
    assert large.value[-1] == "1600x1200"
    assert "larger ones take too long on a GPU" in large.reason
    assert InputSize.parse(large.value[0]).width == 128
    upright = rules.input_sizes(facts(width=480, height=640), "cpu")
    assert upright.value[-1] == "480x640"


def test_few_photographs_are_trained_in_steps_and_not_in_epochs_of_large_data() -> None:
    few = plan(facts(train_images=100), GPU, 6 * 3600, 0.01).schedule
    assert few.steps >= 300
    assert few.epochs == 36
    many = plan(facts(train_images=100_000, val_images=10_000), CPU, 3600, 0.05).schedule
    assert many.epochs == 1
    assert many.train_images < 100_000
    assert many.val_images < 10_000
    assert many.steps == math.ceil(many.train_images / 4)


def test_a_trial_takes_what_the_budget_allows() -> None:
    for budget in (900, 3600, 86400):
        found = plan(facts(), CPU, budget, 0.05)
        assert found.schedule.trials * found.schedule.seconds <= budget
        assert found.schedule.trials >= rules._LEAST_TRIALS
    sizes = [len(plan(facts(), CPU, budget, 0.5).recipe["structural"]["space"]["input_sizes"]) for budget in (900, 9e4)]
    assert sizes[0] < sizes[1]
    reason = next(each.reason for each in plan(facts(), CPU, 900, 0.5).decisions if each.key.endswith("input_sizes"))
    assert "fewer than 5 trials would fit into 10m 30s" in reason


def test_part_of_the_budget_is_kept_for_the_recommended_detector() -> None:
    made = plan(facts(), CPU, 3600.0)
    final = made.recipe["final"]
    assert made.schedule.trials * made.schedule.seconds <= (1 - final["share"]) * 3600
    assert final["epochs"] >= made.schedule.epochs
    assert final["repeats"] == 2
    # Few images are seen so often that they would be learned by heart.
    few = plan(facts(train_images=50, val_images=20), GPU, 3600.0, 0.01).recipe
    assert few["final"]["epochs"] == 300
    assert few["structural"]["training"]["photometric"]
    assert "photometric" not in few["final"]
    short = plan(facts(train_images=2_000), GPU, 12 * 3600.0, 0.05).recipe
    assert short["structural"]["training"]["epochs"] < 16 <= short["final"]["epochs"]
    assert "photometric" not in short["structural"]["training"]
    assert short["final"]["photometric"]


def test_backbones_without_weights_are_left_out_unless_all_are() -> None:
    names = rules.candidates("cpu")
    some = rules.backbones("cpu", {names[0]: "file x.pth", names[2]: "ImageNet"})
    assert some.value == [names[0], names[2]]
    assert f"there are none here for {names[1]}, {names[3]}" in some.reason
    none = plan(facts(), CPU, 900, weights=False)
    assert none.recipe["structural"]["space"]["backbones"] == ["ResNet18"]
    assert none.recipe["structural"]["detector"]["norm"] == "GN"
    assert none.recipe["structural"]["training"]["weights"] == "none"


def test_speed_is_scaled_by_the_number_of_pixels() -> None:
    speed = Speed({"100x100 A": 1.0, "200x100 B": 6.0})
    assert speed.per_image(10_000) == pytest.approx(2.0)
    assert speed.per_image(40_000) == pytest.approx(8.0)


def test_facts_are_those_of_the_training_split(tmp_path: Path) -> None:
    images = [{"id": number, "file_name": f"{number}", "width": 200, "height": 100} for number in range(10)]
    images[9] |= {"width": 400, "height": 200}
    boxes = [{"image_id": number, "bbox": [0, 0, 10, 40], "category_id": 1} for number in range(9)]
    boxes += [{"image_id": 9, "bbox": [0, 0, 80, 80], "category_id": 1}] * 11
    boxes += [{"image_id": 0, "bbox": [0, 0, 0, 40], "category_id": 1}]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    write_json(tmp_path / "train.json", content)
    write_json(tmp_path / "val.json", {**content, "images": images[:3]})
    found = data_facts(tmp_path / "train.json", tmp_path / "val.json")
    assert found == DataFacts(10, 3, 2, 200, 100, small_side=20, median_side=40, crowding=10)


def test_the_table_in_the_documentation_is_that_of_the_rules() -> None:
    spec = importlib.util.spec_from_file_location("plans", ROOT / "docs" / "plans.py")
    assert spec is not None
    assert spec.loader is not None
    plans = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plans)
    assert plans.PAGE.read_text(encoding="utf-8") == plans.page(), "python docs/plans.py writes it anew"
    assert len(plans.CASES) == 10
