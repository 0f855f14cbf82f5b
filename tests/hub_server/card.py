"""The rules by which the tests' Hub takes or refuses a card: written from the Hub's documentation,
not from ours."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
other
"""  # noqa: E501
LICENSES = frozenset(_LICENSES.split())
RELATIONS = ("adapter", "merge", "quantized", "finetune")
_BLOCK = re.compile(r"\A\s*---[\r\n]+(?:(.*?)[\r\n]+)?---[ \t]*(?:[\r\n]|\Z)", re.DOTALL)
_ID = re.compile(
    r"(?!.*(?:--|\.\.))(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9_][\w.-]{0,95}(?<![.-])(?<!\.git)"
)
_EMPTY = "empty or missing yaml metadata in repo card"


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, as the Hub's parser does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicated mapping key {key!r}", node.start_mark
                )
        return super().construct_mapping(node, deep)


def card_data(text: str) -> Any:
    """Return what stands between a card's first two lines of dashes; None if nothing does."""
    block = _BLOCK.match(text)
    return yaml.load(block[1] or "", _Loader) if block else None  # a SafeLoader


def check_card(text: str) -> tuple[list[str], list[str]]:
    """Return the errors and the warnings of a card."""
    try:
        data = card_data(text)
    except yaml.YAMLError as error:
        return [f"YAML metadata error: {error}"], []
    if data is None:
        return [], [_EMPTY]
    if not isinstance(data, dict):
        return ["YAML metadata must be a mapping"], []
    return list(_errors(data)), []


def _errors(data: dict[str, Any]) -> Iterator[str]:
    yield from _license_errors(data)
    yield from _base_model_errors(data)
    for key in ("tags", "datasets", "metrics"):
        value = data.get(key)
        if value is not None and not (
            isinstance(value, list) and all(isinstance(one, str) for one in value)
        ):
            yield f'"{key}" must be an array of strings'
    for key in ("library_name", "pipeline_tag", "license_name", "license_link", "thumbnail"):
        if data.get(key) is not None and not isinstance(data[key], str):
            yield f'"{key}" must be a string'
    language = data.get("language")
    if language is not None and not all(isinstance(one, str) for one in _as_list(language)):
        yield '"language" must be a string, or an array of strings'
    if data.get("model-index") is not None:
        yield from _index_errors(data["model-index"])


def _license_errors(data: dict[str, Any]) -> Iterator[str]:
    for one in _as_list(data.get("license")):
        if one not in LICENSES:
            yield f'"license" must be one of [{", ".join(sorted(LICENSES))}]'
        elif one == "other" and not data.get("license_name"):
            yield '"license_name" is required when "license" is "other"'


def _base_model_errors(data: dict[str, Any]) -> Iterator[str]:
    value = data.get("base_model")
    for position, one in enumerate(_as_list(value)):
        if not (isinstance(one, str) and _ID.fullmatch(one)):
            where = f"base_model[{position}]" if isinstance(value, list) else "base_model"
            yield (
                f'"{where}" with value "{one}" is not valid. Use a model id from'
                " https://hf.co/models."
            )
    relation = data.get("base_model_relation")
    if relation is not None and relation not in RELATIONS:
        yield f'"base_model_relation" must be one of [{", ".join(RELATIONS)}]'


def _index_errors(index: Any) -> Iterator[str]:
    if not isinstance(index, list):
        yield '"model-index" must be an array'
        return
    for i, model in enumerate(index):
        where = f"model-index[{i}]"
        if not isinstance(model, dict) or not _is_text(model.get("name")):
            yield f'"{where}.name" is required'
        elif not isinstance(model.get("results"), list):
            yield f'"{where}.results" must be an array'
        else:
            for j, result in enumerate(model["results"]):
                yield from _result_errors(f"{where}.results[{j}]", result)


def _result_errors(where: str, result: Any) -> Iterator[str]:
    if not isinstance(result, dict):
        yield f'"{where}" must be an object'
        return
    for key, names in (("task", ("type",)), ("dataset", ("name", "type"))):
        record = result.get(key)
        for name in names:
            if not isinstance(record, dict) or not _is_text(record.get(name)):
                yield f'"{where}.{key}.{name}" is required'
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        yield f'"{where}.metrics" must be an array with at least one item'
        return
    for k, metric in enumerate(metrics):
        if not isinstance(metric, dict) or not _is_text(metric.get("type")):
            yield f'"{where}.metrics[{k}].type" is required'
        elif not _is_measure(metric.get("value")):
            yield f'"{where}.metrics[{k}].value" must be a number or a string'


def _is_measure(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return _is_text(value) or (isinstance(value, int | float) and math.isfinite(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
