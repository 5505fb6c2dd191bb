"""Recipes: the shipped one, overrides, and what a user may get wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from elastic_export import resources
from elastic_export.config.loader import load_calibration, load_recipe
from elastic_export.errors import UserError


def _shipped() -> dict[str, object]:
    path = resources.shipped("benchmarks") / "recipes" / "digits.yaml"
    return dict(yaml.safe_load(path.read_text()))


def _write(path: Path, **changes: object) -> str:
    path.write_text(yaml.safe_dump({**_shipped(), **changes}))
    return str(path)


def test_every_shipped_file_is_valid() -> None:
    for name in resources.names("benchmarks"):
        assert load_recipe(name).name == name
    for name in resources.names("calibrate"):
        assert load_calibration(name).name == name
    assert "digits" in resources.names("benchmarks")


def test_the_default_is_digits_and_its_calibration_ships() -> None:
    recipe = load_recipe()
    assert (recipe.name, recipe.data.dataset) == ("digits", "digits")
    assert recipe.quantize is not None
    assert load_calibration(recipe.quantize.calibration).method in ("max", "percentile")


def test_a_file_of_ones_own_wins_over_a_shipped_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / "digits", seed=41)
    assert load_recipe("digits").seed == 41
    assert load_recipe().seed != 41  # no argument means the shipped recipe, whatever lies here


def test_both_spellings_of_a_large_number(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    text = yaml.safe_dump(_shipped())
    path.write_text(text)
    macs = load_recipe(str(path), ["descend.search.budget.macs=[1e5, 1.0e9]"])
    assert macs.descend.search is not None
    assert macs.descend.search.budget is not None
    assert macs.descend.search.budget.macs == (1e5, 1e9)
    assert (
        load_recipe(None, ["train.steps=1e2"]).train == load_recipe(None, ["train.steps=100"]).train
    )


def test_overrides_reach_any_depth_and_make_sections() -> None:
    recipe = load_recipe(
        None,
        [
            "train.steps=7",
            "targets=[host-cpu]",
            "finetune=null",
            "finetune.steps=5",
            "sparsify.finetune.lr=1e-3",
            "sparsify.pattern=2:4",
            "model.config.depth.0=1",
        ],
    )
    assert recipe.train is not None
    assert recipe.train.steps == 7
    assert recipe.targets == ("host-cpu",)
    assert recipe.finetune is not None
    assert recipe.finetune.steps == 5
    assert recipe.sparsify is not None
    assert recipe.sparsify.pattern == "2:4"
    assert recipe.model.config["depth"][0] == 1
    assert load_recipe(None, ["quantize=null"]).quantize is None


@pytest.mark.parametrize(
    ("override", "what", "fix"),
    [
        ("quantise.calibration=max", 'the key "quantise" is unknown', 'mean "quantize"?'),
        ("train.step=3", 'the key "train.step" is unknown', 'mean "train.steps"?'),
        ("sparsify.finetune.step=3", '"sparsify.finetune.step"', 'mean "sparsify.finetune.steps"?'),
        ("data.search_split.per_clas=3", "per_clas", 'mean "data.search_split.per_class"?'),
        ("precision=int8", 'the key "precision" is unknown', 'mean "quantize.precision"?'),
        ("zebra=1", 'the key "zebra" is unknown', "Known: data, descend"),
        ("train.steps=true", '"train.steps" should be a whole number, not true', "--set"),
        ("train.steps='3'", 'should be a whole number, not the text "3"', "--set"),
        ("train.steps=1.5", "should be a whole number, not 1.5", "--set"),
        ("train.lr=fast", '"train.lr" should be a number, not the text "fast"', "--set"),
        ("train.lr=-1", '"train.lr" should be greater than 0, but is -1', "--set"),
        ("train.distill=yes", 'should be true or false, not the text "yes"', "--set"),
        ("train=3", '"train" should be a section of keys, not 3', "--set"),
        ("targets=a10", '"targets" should be a list, not the text "a10"', "[a10]"),
        ("targets=[]", "targets is empty", "--set"),
        ("descend.specs=[3]", '"descend.specs.0" should be text or a section of keys, not 3', ""),
        ("descend.search.budget.macs=[3]", "has too few values", "--set"),
        ("descend.search.budget.macs=[1,2,3]", "has 3 values, but should have 2", "--set"),
        ("descend.search.budget.macs=[3,2]", "not a range", "--set"),
        ("data.dataset=digit", "should be 'digits' or 'imagefolder'", 'mean "digits"?'),
        ("data.dataset=imagefolder", "imagefolder needs root", "--set"),
        ("model=null", '"model" should be a section of keys, not empty', "--set"),
        ("schema_version=2", "has schema_version 2", "Upgrade"),
        ("seed.x=1", '"seed" is a value, not a section', "--set seed=VALUE"),
        ("targets.9=a10", "is a list of 5 entries", "a number below 5"),
        ("targets", "not of the form KEY=VALUE", "--set train.steps=200"),
        ("a..b=1", "not of the form KEY=VALUE", "--set"),
        ("name={", 'The value of "name" is not valid YAML', "Correct"),
    ],
)
def test_what_is_wrong_and_what_to_do(override: str, what: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(None, [override])
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.what.endswith(".")


def test_several_problems_are_one_error(tmp_path: Path) -> None:
    train = {"steps": "many", "stepz": 3}
    path = _write(tmp_path / "r.yaml", train=train, seed=-1, modell={})
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    for words in (
        "r.yaml",
        '"train.steps" should be',
        '"train.stepz"',
        '"seed" should',
        '"modell"',
    ):
        assert words in caught.value.what
    assert 'mean "train.steps"?' in caught.value.fix
    assert 'mean "model"?' in caught.value.fix


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    values = _shipped()
    del values["descend"]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match='the key "descend" is missing'):
        load_recipe(str(tmp_path / "r.yaml"))


def test_unknown_names_and_paths(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'no recipe "digit". Did you mean "digits"'):
        load_recipe("digit")
    with pytest.raises(UserError, match="does not exist"):
        load_recipe(str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match="is a folder"):
        load_recipe(str(tmp_path))
    with pytest.raises(UserError, match="no calibration recipe"):
        load_calibration("maxx")


def test_a_recipe_that_is_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(b"PK\x03\x04" + bytes(range(256)) * 9000)
    with pytest.raises(UserError, match="is not a recipe"):
        load_recipe(str(tmp_path / "net.pth"))
