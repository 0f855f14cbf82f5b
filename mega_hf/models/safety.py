"""Check that a model's configuration makes a library load only safetensors of its own folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Keys whose values choose what a library opens or runs, at any depth: a plain name at most.
_CHOOSING = {
    "architecture",
    "backbone",
    "transformers_weights",
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
    "checkpoint_path",
    "cache_dir",
}
# Arguments of timm.create_model that would load something other than the folder's weights, or
# only a part of them.
_NOT_ARCHITECTURE = {
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_model_args",
    "pretrained_strict",
    "pretrained_custom_load",
    "pretrained_filter_fn",
    "checkpoint_path",
    "cache_dir",
    "features_only",
    "pruned",
    "feature_cfg",
    "feature_cls",
    "device",
    "dtype",
}


def check_arguments(arguments: Any) -> None:
    """Raise ValueError if arguments of a timm architecture choose more than the architecture."""
    if not isinstance(arguments, dict):
        raise ValueError("the architecture's arguments are not a mapping")
    wrong = sorted(_NOT_ARCHITECTURE.intersection(arguments))
    if wrong:
        raise ValueError(f"{wrong[0]} is not an argument of the architecture")


def check_reach(config: dict[str, Any]) -> None:
    """Raise ValueError if a config.json names something outside its folder to open or run."""
    waiting: list[Any] = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
            for key in _CHOOSING.intersection(value):
                if value[key] is not None and any(mark in str(value[key]) for mark in "/\\:"):
                    raise ValueError(f"{key} is not a plain name: {str(value[key])[:200]}")
        elif isinstance(value, list):
            waiting += value
    if config.get("quantization_config") is not None:
        raise ValueError("quantization_config: quantized weights can't be merged")
    if config.get("model_args") is not None:
        check_arguments(config["model_args"])


def check_shards(index: Any, folder: Path) -> None:
    """Raise ValueError unless all shards of an index are safetensors files of the folder."""
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise ValueError("the index has no weight_map")
    for shard in set(map(str, shards.values())):
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise ValueError(f"a shard is not a safetensors file of the folder: {shard[:200]}")
        if not (folder / shard).is_file():
            raise ValueError(f"a shard is missing: {shard[:200]}")
