"""What a merge starts from."""

from __future__ import annotations

from functools import partial

from mega_hf.models.load import open_model
from mega_hf.models.merge_inputs import ModelSource, open_inputs
from mega_hf.weights.mapped import map_files
from mega_hf.weights.space import digest
from tests.tools import tiny


def test_genes_stand_in_the_models_order_whatever_that_of_its_file(pair: tiny.Pair) -> None:
    sources = {}
    for name, folder in (("a", pair.a), ("b", pair.b)):
        sha256 = digest(open_model(folder).view())
        sources[name] = ModelSource(
            name, sha256, "", partial(open_model, folder), tuple(folder.glob("*.safetensors"))
        )
    order = list(open_model(pair.a).view())
    mapped = map_files(sources["a"].files, sources["a"].sha256)
    assert mapped is not None and list(mapped) != order, "else this says nothing"
    opened = open_inputs(sources)
    learned = open_model(pair.a).learned()
    assert [s.name for s in opened.space.segments if s.learned] == [
        name for name in order if name in learned
    ]
    assert all(list(state) == order for state in opened.states.values())
