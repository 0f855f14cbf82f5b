"""Generate docs/recipe.md from the descriptions of the recipe's keys.

python -m mega_hf.recipe.reference > docs/recipe.md
"""

from __future__ import annotations

import json
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mega_hf.recipe.data import CalibrationRows, Data, Sample
from mega_hf.recipe.merge import Founders, Merge, Mutation, Node
from mega_hf.recipe.parents import ParentTrain, Train, TrainedParent, WeightsParent
from mega_hf.recipe.placeholders import LocalPlaceholder
from mega_hf.recipe.schema import Evaluation, Push, Recipe

_INTRODUCTION = """# Recipe reference

A recipe is a YAML file with everything that decides a merge. Only `name`, `data.path` and
`parents` are required. Relative paths start at the folder of the recipe. An unknown key, a wrong
type or a missing file is an error with file and line, raised before anything is loaded.
`--set KEY.KEY=VALUE` overrides a key on the command line.

This page is generated from the code by `python -m mega_hf.recipe.reference > docs/recipe.md`.

## Example

All keys but `push`. Values are the defaults, except those of `name`, `parents` and `train.arch`,
which have none, and some of `data`, where the default `null` would choose the splits:

```yaml
name: my-merge                     # the run folder is runs/my-merge
data:
  path: uoft-cs/cifar10            # a data set on the Hub, or ./FOLDER
  name: null
  revision: null                   # pinned to a commit by the run
  image: null                      # the only column of images
  label: null                      # the only column of labels
  train: train
  validation: train[45000:]        # or {split: train, size: 5000, seed: 46, stratify: true}
  test: test                       # read once, after the search
  calibration: {size: 1280, seed: 46}
  second_look: 0.5                 # share of the validation rows held out from the search
parents:
  a: ORG/RESNET18-CIFAR10          # a repository on the Hub, with @REVISION if wanted
  b: ORG/RESNET18-CIFAR10-B        # same architecture, classes and preprocessing as the first
  c: {train: {seed: 44}}           # trained in the run, by the train block
  d: {train: {seed: 45, from: c, epochs: 5}}
train:                             # shared by the parents that are trained
  arch: resnet18
  arch_args: {}
  data_config: {}                  # timm's input_size, mean, std, interpolation, crop_pct
  from: null
  epochs: 50
  batch_size: 256
  optimizer: adam
  momentum: 0.9
  learning_rate: 0.01
  schedule: constant
  warmup_epochs: 0
  weight_decay: 0.0
  label_smoothing: 0.0
  augmentation: none
  checkpoints: 0
merge:                             # shared by all merges
  method: mega
  variant: default
  population_size: 20
  generations: 20
  num_mates: 4
  tournament_size: 3
  mutation: {rate: 0.02, std: 0.05, scope: element, relative: true}
  founders: {include_parents: true}
  encoding: direct
  granularity: layer
  align: none
  align_to: null
  fitness: accuracy
  prefer: 0
  batchnorm: recalibrate
  seed: 46
merges: joint                      # or pairwise, or nodes such as {ab: {parents: [a, b]}, ...}
order: listed
baselines: [greedy_soup, line-sweep, random, ensemble]
evaluation: {batch_size: null, memory_share: 0.5}
threads: 1
```
"""

# heading -> the block of its table, if it has one, and a text above the table
_SECTIONS: dict[str, tuple[type[BaseModel] | None, str]] = {
    "Top level": (Recipe, ""),
    "`data`": (Data, ""),
    "`data.validation` as a sample": (Sample, ""),
    "`data.calibration` as a sample": (CalibrationRows, ""),
    "`parents.NAME`": (
        None,
        "A parent is a model on the Hub (`ORG/NAME` or `ORG/NAME@REVISION`), a folder (`./FOLDER`),"
        "\npretrained weights of timm (`timm:ARCH.TAG`), or one of the two mappings below. Only"
        " safetensors files are read.",
    ),
    "A parent with weights in a file": (WeightsParent, ""),
    "A parent that is trained in the run": (TrainedParent, ""),
    "`parents.NAME.train`": (ParentTrain, "All keys of `train` too; they override those."),
    "`train`": (Train, ""),
    "`merge`": (Merge, ""),
    "`merge.mutation`": (Mutation, ""),
    "`merge.founders`": (Founders, ""),
    "`merges.NAME`": (Node, "All keys of `merge` too; they override those."),
    "`evaluation`": (Evaluation, ""),
    "`push`": (Push, "A run does not store this block, so a rerun by somebody else does not push."),
    "Placeholders": (
        LocalPlaceholder,
        "The recipe of a pushed run has a placeholder in place of each local path. To rerun it,"
        "\ngive the path: `--set parents.a=./folder`.",
    ),
}


def render_reference() -> str:
    """Return the text of docs/recipe.md."""
    parts = [_INTRODUCTION]
    for heading, (block, text) in _SECTIONS.items():
        parts.append(f"\n## {heading}\n")
        parts += [f"\n{text}\n"] if text else []
        parts += [f"\n{_table(block)}\n"] if block else []
    return "".join(parts)


def _table(block: type[BaseModel]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    shared: dict[type[BaseModel], type[BaseModel]] = {ParentTrain: Train, Node: Merge}
    inherited = shared[block].model_fields if block in shared else {}
    for name, field in block.model_fields.items():
        if name not in inherited:
            key = field.alias or name
            lines.append(f"| `{key}` | {_type(field)} | {_default(field)} | {field.description} |")
    return "\n".join(lines)


def _type(field: FieldInfo) -> str:
    limits = [text for rule in field.metadata if (text := _limit(rule))]
    return ", ".join([_type_name(field.annotation), *limits])


def _type_name(annotation: Any) -> str:
    """Return a type in the words of YAML: its choices, its name, or the block that it is."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        limits = [text for rule in arguments[1:] if (text := _limit(rule))]
        return ", ".join([_type_name(arguments[0]), *limits])
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type_name(part) for part in arguments))
    if get_origin(annotation) is list:
        return f"list of {_type_name(arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "placeholder" if annotation is LocalPlaceholder else "mapping"
    names = {str: "text", int: "integer", float: "number", bool: "`true`, `false`"}
    return "`null`" if annotation is type(None) else names.get(annotation, "mapping")


def _limit(rule: Any) -> str:
    """Return the limits of a number as text, without upper limits that nobody will reach."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {value:,}"
        for part in getattr(rule, "metadata", [rule])
        for name, sign in signs.items()
        if (value := getattr(part, name, None)) is not None and value < 10**6
    ]
    return ", ".join(found)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its defaults"
    text = value if isinstance(value, str) else json.dumps(value).replace('"', "")
    return f"`{text}`"


if __name__ == "__main__":
    print(render_reference(), end="")
