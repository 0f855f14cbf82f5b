"""Splits, columns and classes: which rows are read, and how labels match outputs."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from mega_hf.errors import DataError
from mega_hf.recipe.data import Data, Sample
from mega_hf.tasks.image_classification import match_classes
from mega_hf.tasks.splits import load_split, load_splits
from tests.tools import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_data(tmp_path_factory.mktemp("data") / "tiny")


def test_the_defaults(folder: Path) -> None:
    splits = load_splits(Data(path=str(folder), second_look=0.0))
    assert (splits.validation.spec, splits.test.spec) == ("validation", "test")
    assert (len(splits.validation), len(splits.test), len(splits.train)) == (60, 90, 120)
    assert (splits.class_names, splits.classes) == (tiny.NAMES, 3)
    assert (splits.data.image, splits.data.label) == ("image", "label")
    assert splits.source == {"local": "tiny"}
    assert splits.notices == ()


def test_images_and_labels_are_those_of_the_files(folder: Path) -> None:
    splits = load_splits(Data(path=str(folder), validation="validation[10:20]", second_look=0.0))
    images, labels = tiny.examples(60, 2)
    assert np.array_equal(np.array(splits.validation.example(3)), images[13])
    assert splits.validation.labels().tolist() == labels[10:20].tolist()
    assert splits.validation.indices.tolist() == list(range(10, 20))


def test_a_stratified_sample(folder: Path) -> None:
    sample = Sample(split="train", size=30, seed=1)
    splits = load_splits(Data(path=str(folder), validation=sample, second_look=0.0))
    assert np.bincount(splits.validation.labels()).tolist() == [10, 10, 10]
    again = load_splits(Data(path=str(folder), validation=sample, second_look=0.0))
    sample = sample.model_copy(update={"seed": 2})
    other = load_splits(Data(path=str(folder), validation=sample, second_look=0.0))
    assert again.digests == splits.digests
    assert other.digests["validation"] != splits.digests["validation"]
    # What parents are trained on here is what is left.
    assert len(splits.train) == 90
    assert not set(splits.train.indices) & set(splits.validation.indices)


def test_a_sample_of_unequal_classes_without_stratification(tmp_path: Path) -> None:
    # a class of one row can't be shared out
    one = tiny.split(60, 1).select([0, 3, 6, 9, 12, 15, 18, 21, 24, 1])
    tiny.write_splits(tmp_path / "data", {"train": one, "test": tiny.split(9, 3)})
    data = Data(path=str(tmp_path / "data"), validation=Sample(size=5, seed=0), second_look=0.0)
    with pytest.raises(DataError, match="stratify: false"):
        load_splits(data)
    plain = data.model_copy(update={"validation": Sample(size=5, seed=0, stratify=False)})
    assert len(load_splits(plain).validation) == 5


def test_the_digest_is_of_the_rows(folder: Path, tmp_path: Path) -> None:
    """Not of the files: the same rows elsewhere, in another file, have the same digest; one changed
    label has not."""
    first = load_splits(Data(path=str(folder)))
    splits = {
        name: tiny.split(rows, seed) for seed, (name, rows) in enumerate(tiny.ROWS.items(), 1)
    }
    tiny.write_splits(tmp_path / "again", splits)
    assert load_splits(Data(path=str(tmp_path / "again"))).digests == first.digests

    def relabel(row: dict, i: int) -> dict:
        return {"label": 2} if i == 0 else row

    tiny.write_splits(
        tmp_path / "other", splits | {"test": splits["test"].map(relabel, with_indices=True)}
    )
    other = load_splits(Data(path=str(tmp_path / "other")))
    assert other.digests["validation"] == first.digests["validation"]
    assert other.digests["test"] != first.digests["test"]


def test_a_changed_folder_is_seen(tmp_path: Path) -> None:
    """The `datasets` cache must not serve what the folder held before."""
    tiny.write_data(tmp_path / "data")
    before = load_splits(Data(path=str(tmp_path / "data"))).digests
    tiny.split(60, 99).to_parquet(tmp_path / "data" / "data" / "validation-00000-of-00001.parquet")
    after = load_splits(Data(path=str(tmp_path / "data"))).digests
    assert after["validation"] != before["validation"]
    assert after["test"] == before["test"]


def test_a_few_shared_images_are_a_notice_and_many_an_error(tmp_path: Path) -> None:
    test = tiny.split(90, 3)
    large = datasets.concatenate_datasets([tiny.split(199, 2), test.select([5])])
    tiny.write_splits(tmp_path / "few", {"validation": large, "test": test})
    splits = load_splits(Data(path=str(tmp_path / "few")))
    assert splits.shared_images == 1
    assert "1 validation images" in " ".join(splits.notices)
    many = datasets.concatenate_datasets([large, test.select(range(10))])
    tiny.write_splits(tmp_path / "many", {"validation": many, "test": test})
    with pytest.raises(DataError, match="same images"):
        load_splits(Data(path=str(tmp_path / "many")))


def test_images_by_class_in_folders(tmp_path: Path) -> None:
    for seed, (name, rows) in enumerate({"train": 9, "validation": 9, "test": 9}.items()):
        images, labels = tiny.examples(rows, seed)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = tmp_path / "data" / name / tiny.NAMES[label] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    splits = load_splits(Data(path=str(tmp_path / "data")))
    assert (splits.class_names, len(splits.test)) == (tiny.NAMES, 9)
    assert splits.test.example(0).size == (8, 8)


def test_validation_from_the_training_split_is_said(folder: Path) -> None:
    splits = load_splits(Data(path=str(folder), validation="train[100:]"))
    assert "no parent was trained on them" in " ".join(splits.notices)
    assert len(splits.train) == 100


def test_one_split_alone(folder: Path) -> None:
    split, names, classes = load_split(Data(path=str(folder)), "test[:50%]")
    assert (len(split), names, classes) == (45, tiny.NAMES, 3)


def test_classes_by_name() -> None:
    names = ("bar", "dash", "slash")
    assert match_classes(("slash", "dot", "bar", "dash"), 4, names, 3) == ([2, 3, 0], "by name")
    with pytest.raises(DataError, match="slash"):
        match_classes(("bar", "dash", "dot"), 3, names, 3)


@pytest.mark.parametrize(
    ("labels", "names"), [(None, ("x", "y")), (("x", "y", "z"), None), (None, None)]
)
def test_classes_by_position(labels, names) -> None:
    mapping, how = match_classes(labels, 3, names, 2)
    assert mapping == [0, 1]
    assert how.startswith("by position")
    with pytest.raises(DataError, match="lacks a class"):
        match_classes(labels, 1, names, 2)


def test_a_model_with_other_label_order_answers_the_same(
    pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    """Its last layer and its names permuted together: as right as before, and as its user would
    count."""
    import json

    from safetensors.torch import load_file

    order = [2, 0, 1]
    state = load_file(pair.a / "model.safetensors")
    model = tiny.timm_model()
    model.load_state_dict(state | {k: state[k][order] for k in ("fc.weight", "fc.bias")})
    tiny.save_timm(tmp_path / "permuted", model, [tiny.NAMES[i] for i in order])
    counted = []
    for folder in (pair.a, tmp_path / "permuted"):
        answer = mega("evaluate", folder, "--data", pair.data, "--split", "test", "--json")
        counted.append(json.loads(answer.out)["correct"])
    assert counted[0] == counted[1]
    assert tiny.count(model, "test") != counted[0], (
        "by position it would be wrong, or this test shows nothing"
    )
    assert tiny.count(model, "test", [order.index(i) for i in range(3)]) == counted[0]
