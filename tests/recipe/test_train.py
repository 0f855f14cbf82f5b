"""Recipes with trained parents: the shared train block, `from`, and snapshots."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mega_hf.recipe.parents import Train
from mega_hf.recipe.schema import Recipe
from tests.recipe.test_schema import load, make_parent
from tests.recipe.test_trees import error_of, inputs, lines, same_after_yaml

TWO = """\
name: test
data: {path: org/set}
train: {arch: x, epochs: 8}
parents:
  a: {train: {seed: 1}}
  b: {train: {seed: 2}}
"""
NODE = "merges: {n: {parents: [a, b]}}\n"
SNAPSHOTS = TWO.replace("epochs: 8", "epochs: 8, checkpoints: 4")


def own(text):
    """Return a recipe whose parent b has these keys beside its seed."""
    return TWO.replace("{seed: 2}", f"{{seed: 2, {text}}}")


def shared(text):
    """Return a recipe whose shared block has these keys."""
    kept = "epochs: 8, " if "epochs: 3" not in text and "epochs: 0" not in text else ""
    return TWO.replace("epochs: 8", kept + text)


# --- The shared block and a parent's own


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 2", {"arch": "x", "epochs": 8, "learning_rate": 0.01}),
        ("epochs: 3", {"arch": "x", "epochs": 3}),
        ("arch: y, learning_rate: 1e-3", {"arch": "y", "learning_rate": 0.001, "epochs": 8}),
        ("optimizer: sgd, momentum: 0.5", {"optimizer": "sgd", "momentum": 0.5}),
        (
            "schedule: one-cycle, augmentation: flip-and-crop",
            {"schedule": "one-cycle", "augmentation": "flip-and-crop"},
        ),
        (
            "schedule: cosine, warmup_epochs: 7, checkpoints: 8",
            {"warmup_epochs": 7, "checkpoints": 8},
        ),
        (
            "weight_decay: 1e-4, label_smoothing: 0.1",
            {"weight_decay": 0.0001, "label_smoothing": 0.1},
        ),
    ],
)
def test_a_parent_has_its_own_settings_and_the_shared_ones_below(tmp_path, text, expected):
    recipe = load(tmp_path, own(text).replace("seed: 2, seed: 2", "seed: 2"))
    train = recipe.parents["b"].train
    assert {key: getattr(train, key) for key in expected} == expected
    assert recipe.parents["a"].train.model_dump(exclude={"seed"}) == recipe.train.model_dump()
    same_after_yaml(recipe, tmp_path)


def test_a_mapping_is_a_parents_own_as_a_whole(tmp_path):
    """Unlike `mutation`: half of another architecture's arguments would fit no architecture."""
    text = own("arch_args: {width: 3}, data_config: {}").replace(
        "arch: x", "arch: x, arch_args: {depth: 2}"
    )
    train = (
        load(tmp_path, text.replace("arch: x", "arch: x, data_config: {crop_pct: 0.9}"))
        .parents["b"]
        .train
    )
    assert (train.arch_args, train.data_config) == ({"width": 3}, {})


def test_what_is_inherited_is_not_written_again(tmp_path):
    recipe = load(tmp_path, own("epochs: 3, learning_rate: 0.01, batch_size: 256"))
    written = same_after_yaml(recipe, tmp_path)
    assert written["parents"] == {
        "a": {"train": {"seed": 1}},
        "b": {"train": {"seed": 2, "epochs": 3}},
    }
    assert recipe.sha256 == load(tmp_path, own("epochs: 3")).sha256
    assert recipe.sha256 != load(tmp_path, own("epochs: 4")).sha256


def test_parents_may_say_everything_themselves(tmp_path):
    text = TWO.replace("train: {arch: x, epochs: 8}\n", "").replace("seed: 1", "seed: 1, arch: x")
    recipe = load(tmp_path, text.replace("seed: 2", "seed: 2, arch: x, epochs: 3"))
    assert recipe.train is None
    assert [parent.train.epochs for parent in recipe.trained.values()] == [50, 3]
    same_after_yaml(recipe, tmp_path)


def test_training_can_be_set_or_left_out_on_the_command_line(tmp_path):
    trained = load(tmp_path, TWO, ["train.epochs=5", "parents.b.train.epochs=6"]).trained
    assert [parent.train.epochs for parent in trained.values()] == [5, 6]
    for name in ("a", "b"):
        make_parent(tmp_path / name)
    recipe = load(tmp_path, TWO, [f"parents.a={tmp_path}/a", f"parents.b={tmp_path}/b", "train="])
    assert (recipe.train, recipe.trained) == (None, {})


# --- Where training starts


@pytest.mark.parametrize("source", ["a", "a@4", "org/name@main", "timm:resnet18.a1_in1k"])
def test_training_starts_at_a_parent_a_snapshot_or_a_model(tmp_path, source):
    text = own(f"from: {source}").replace("seed: 1", "seed: 1, checkpoints: 2")
    recipe = load(tmp_path, text)
    assert recipe.parents["b"].train.source == source
    assert recipe.parents["a"].train.source is None
    written = same_after_yaml(recipe, tmp_path)
    assert written["parents"]["b"]["train"] == {"from": source, "seed": 2}


def test_a_folder_is_relative_to_the_recipe_or_to_the_working_folder(
    tmp_path, tmp_path_factory, monkeypatch
):
    work = tmp_path_factory.mktemp("work")
    for folder in (tmp_path, work):
        make_parent(folder / "start")
    monkeypatch.chdir(work)
    beside, here = str(tmp_path / "start"), str(work / "start")
    recipe = load(tmp_path, own("from: ./start"))
    assert recipe.parents["b"].train.source == beside
    same_after_yaml(recipe, tmp_path)
    both = load(tmp_path, TWO.replace("arch: x", "from: ./start"))
    assert [parent.train.source for parent in both.trained.values()] == [
        beside,
        beside,
    ], "arch is the model's own"
    assert load(tmp_path, TWO, ["parents.b.train.from=./start"]).parents["b"].train.source == here
    assert load(tmp_path, TWO, ["train.from=./start"]).train.source == here


def test_a_shared_start_is_left_by_the_parent_that_it_names(tmp_path):
    text = TWO.replace("arch: x", "arch: x, from: a").replace("seed: 1", "seed: 1, from: null")
    recipe = load(tmp_path, text)
    assert [parent.train.source for parent in recipe.trained.values()] == [None, "a"]
    written = same_after_yaml(recipe, tmp_path)
    assert written["parents"] == {
        "a": {"train": {"seed": 1, "from": None}},
        "b": {"train": {"seed": 2}},
    }


@pytest.mark.parametrize(
    ("trunk", "start"),
    [
        ("{train: {seed: 3}}", "trunk"),
        ("org/trunk", "trunk"),
        ("{train: {seed: 3, checkpoints: 2}}", "trunk@4"),
    ],
)
def test_a_trunk_that_others_are_trained_from_need_not_be_in_a_node(tmp_path, trunk, start):
    text = TWO.replace("{seed: ", f"{{from: {start}, seed: ") + f"  trunk: {trunk}\n"
    recipe = load(tmp_path, text + NODE)
    assert inputs(recipe) == {"n": ["a", "b"]}
    assert inputs(load(tmp_path, text)) == {"a+b+trunk": ["a", "b", "trunk"]}, (
        "only nodes can leave it out"
    )
    message = error_of(tmp_path, f"{TWO}  trunk: {trunk}\n{NODE}")
    assert "trunk, in no node" in message
    assert lines(message) == [7]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (own("from: aa"), 6, ["parents.b.train.from", "one of a, b, or ORG/NAME", "aa"]),
        (own("from: a@4"), 6, ["parents.b.train.from", "one of a, b, or", "a@4"]),
        (own("from: 5"), 6, ["parents.b.train.from", "string", "5 (int)"]),
        (own("from: a/b/c"), 6, ["parents.b.train.from", "not a model"]),
        (
            own("from: ./nowhere"),
            6,
            ["parents.b.train.from", "no such parent folder", "check the path"],
        ),
        # cycles
        (own("from: b"), 6, ["parents.b.train.from", "b from b", "from: null"]),
        (own("from: b@8, checkpoints: 1"), 6, ["parents.b.train.from", "b from b"]),
        (
            own("from: a").replace("seed: 1", "seed: 1, from: b"),
            5,
            ["parents.a.train.from", "a from b from a"],
        ),
    ],
)
def test_a_start_that_is_unknown_is_an_error_at_its_line(tmp_path, text, line, words):
    message = error_of(tmp_path, text)
    assert all(word in message for word in words), message
    assert lines(message) == [line], message


@pytest.mark.parametrize("source", ["./nowhere", "nobody"])
def test_a_shared_start_that_is_none_is_said_once(tmp_path, source):
    message = error_of(tmp_path, TWO.replace("arch: x", f"arch: x, from: {source}"))
    assert lines(message) == [3], message
    assert "train.from: " in message


def test_a_cycle_is_said_of_a_parent_that_is_in_it(tmp_path):
    message = error_of(tmp_path, own("from: b").replace("seed: 1", "seed: 1, from: b"))
    assert lines(message) == [6], message


def test_a_parent_may_be_called_from(tmp_path):
    load(tmp_path, own("from: a").replace("  b:", "  from:"))


# --- Snapshots


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (50, [10, 20, 30, 40, 50]),
        (8, [2, 4, 6, 8]),
        (3, [2, 3]),
        (3, [1, 2, 3]),
        (10, [3, 7, 10]),
        (7, [7]),
        (50, []),
    ],
)
def test_snapshots_are_equally_spaced_and_the_last_is_at_the_end(epochs, expected):
    assert Train(epochs=epochs, checkpoints=len(expected)).snapshots == expected


@given(st.integers(1, 500), st.data())
@settings(max_examples=100, deadline=None)
def test_there_are_as_many_snapshots_as_asked_for(epochs, data):
    count = data.draw(st.integers(1, epochs))
    snapshots = Train(epochs=epochs, checkpoints=count).snapshots
    gaps = [after - before for before, after in zip([0, *snapshots], snapshots, strict=False)]
    assert (len(snapshots), snapshots[-1]) == (count, epochs)
    assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 2


def test_a_node_may_name_snapshots(tmp_path):
    recipe = load(
        tmp_path, SNAPSHOTS + "merges: {n: {parents: [a@2, a@6, b@8]}, m: {parents: [n, a]}}\n"
    )
    assert inputs(recipe) == {"n": ["a@2", "a@6", "b@8"], "m": ["n", "a"]}
    same_after_yaml(recipe, tmp_path)


def test_one_parent_is_enough_where_its_snapshots_are_merged(tmp_path):
    text = SNAPSHOTS.replace("  b: {train: {seed: 2}}\n", "")
    recipe = load(tmp_path, text + "merges: {soup: {parents: [a@2, a@4, a]}}\n")
    assert recipe.usable == ["a", "a@2", "a@4", "a@6", "a@8"]
    assert inputs(recipe) == {"soup": ["a@2", "a@4", "a"]}
    assert "two parents or more" in error_of(tmp_path, text)


def test_pairs_and_a_joint_merge_leave_snapshots_out(tmp_path):
    for merges in ("joint", "pairwise"):
        assert inputs(load(tmp_path, f"{SNAPSHOTS}merges: {merges}\n")) == {"a+b": ["a", "b"]}


@pytest.mark.parametrize(
    ("text", "name", "known"),
    [
        (SNAPSHOTS, "a@5", "a, b, a@2, a@4, a@6, a@8, b@2, b@4, b@6, b@8"),
        (SNAPSHOTS, "a@02", "a@2"),
        (SNAPSHOTS, "z@2", "a@2"),
        (TWO, "a@8", "one of a, b\n"),
        (SNAPSHOTS.replace("{train: {seed: 1}}", "org/a"), "a@8", "one of a, b, b@2"),
    ],
)
def test_a_snapshot_that_is_not_kept_is_an_error_at_its_line(tmp_path, text, name, known):
    message = error_of(tmp_path, f"{text}merges:\n  n: {{parents: [{name}, b]}}\n")
    assert lines(message) == [8]
    assert "merges.n.parents" in message and known in message


# --- Settings that can't be right


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("epochs: 3, warmup_epochs: 3", "warmup_epochs", ["fewer than epochs, which is 3"]),
        (
            "warmup_epochs: 1, schedule: one-cycle",
            "warmup_epochs",
            ["one-cycle has its own warm-up", "cosine"],
        ),
        ("checkpoints: 9", "checkpoints", ["at most one per epoch, 8", "9"]),
        ("epochs: 3, checkpoints: 4", "checkpoints", ["at most one per epoch, 3"]),
        ("epochs: 0", "epochs", ["greater than or equal to 1"]),
        ("epochz: 3", "epochz", ["did you mean epochs?"]),
        ("learning_rate: 0", "learning_rate", ["greater than 0"]),
        ("optimizer: adamax", "optimizer", ["'adam', 'adamw' or 'sgd'"]),
        ("schedule: step", "schedule", ["'constant', 'cosine' or 'one-cycle'"]),
        ("augmentation: true", "augmentation", ["'none' or 'flip-and-crop'", "True (bool)"]),
    ],
)
def test_a_mistake_is_said_once_where_it_stands(tmp_path, text, key, words):
    for recipe, line, at in (
        (shared(text), 3, f"train.{key}: "),
        (own(text), 6, f"parents.b.train.{key}: "),
    ):
        message = error_of(tmp_path, recipe)
        assert lines(message) == [line], message
        assert f": {at}" in message and all(word in message for word in words), message


def test_a_parents_own_setting_may_not_fit_the_shared_ones(tmp_path):
    for text in ("epochs: 2", "schedule: one-cycle"):
        message = error_of(tmp_path, own(text).replace("epochs: 8", "epochs: 8, warmup_epochs: 2"))
        assert lines(message) == [6]
        assert "parents.b.train.warmup_epochs" in message


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("{arch: x, epochs: 8}", "{arch: x, seed: 8}", 3, ["train.seed", "unknown key"]),
        ("{arch: x, epochs: 8}", "5", 3, ["train: ", "mapping", "5 (int)"]),
        ("arch: x, ", "", 5, ["parents.a", "a train block with arch, or from"]),
        ("train: {arch: x, epochs: 8}\n", "", 1, ["train: ", "a train block with arch, or from"]),
        ("{seed: 1}", "{}", 5, ["parents.a.train.seed", "missing"]),
        ("{seed: 1}", "", 5, ["parents.a.train", "mapping", "nothing"]),
        ("seed: 1", "seed: -1", 5, ["parents.a.train.seed", "greater than or equal to 0"]),
        (
            "{train: {seed: 1}}",
            "{train: {seed: 1}, weights: w}",
            5,
            ["parents.a.weights", "unknown key"],
        ),
        ("  b:", "  b@4:", 6, ["parents.b@4", "a name of letters, digits"]),  # taken, by snapshots
        (
            "seed: 2",
            "seed: 1, epochs: 8",
            6,
            ["parents.b", "another model than a"],
        ),
    ],
)
def test_an_error_names_its_line_and_what_is_wrong(tmp_path, old, new, line, words):
    assert old in TWO
    message = error_of(tmp_path, TWO.replace(old, new, 1))
    assert lines(message) == [line], message
    assert all(word in message for word in words), message


@given(
    st.integers(1, 99),
    st.floats(0, 0.99),
    st.floats(1e-9, 100),
    st.sampled_from(["constant", "cosine"]),
)
@settings(max_examples=40, deadline=None)
def test_any_training_comes_back_from_yaml(tmp_path_factory, epochs, smoothing, rate, schedule):
    train = {
        "arch": "x",
        "epochs": epochs,
        "checkpoints": epochs,
        "schedule": schedule,
        "learning_rate": rate,
    }
    parents = {
        "a": {"train": {"seed": 1}},
        "b": {"train": {"seed": 1, "label_smoothing": smoothing, "from": "a"}},
    }
    recipe = Recipe.from_dict(
        {"name": "t", "data": {"path": "o/s"}, "parents": parents, "train": train}
    )
    same_after_yaml(recipe, tmp_path_factory.getbasetemp())
