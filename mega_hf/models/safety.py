"""What a model's folder may ask of this machine, counted before a library reads a weight or builds
a layer.

- A safetensors header is read by its library only if it has 25 MB at most and the file is as long
as it says.
- A model is first built on torch's meta device, where weights take no memory, and building stops
  where it registers more tensors or modules than the stored ones explain. Only a model with at most
  twice the stored numbers and 16 million beside is then built and loaded; one of which the
  configuration alone is here, with at most 2^31 numbers.
- There are at most 100,000 classes, and no more layers than stored tensors allow.
- Pictures have at most 4,096 pixels a side once prepared.

So a model that is opened, and one that is refused, takes at most four times its weights' size as
float32 and 512 MiB.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from mega_hf.errors import ParentError
from mega_hf.runtime.untrusted import LimitExceeded

HEADER_BYTES = 25_000_000
SIDE = 4096  # pixels
CLASSES = 100_000  # transformers makes a name for each before it builds anything
_SMALLEST_CROP = 0.1  # crop_pct: pictures are enlarged by its inverse

_DEPTH = re.compile(r"(^|_)(depth|depths|layer|layers|block|blocks|stages)$")

# Keys whose texts choose what a library opens or runs, wherever they stand: a plain name at most.
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
# Arguments of timm's that would load something else than the folder's weights, or not load all of
# those.
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


_RANDOM = (
    "normal_",
    "uniform_",
    "log_normal_",
    "exponential_",
    "bernoulli_",
    "random_",
    "cauchy_",
    "geometric_",
)
_DRAWS = {draw for name, draw in vars(nn.init).items() if callable(draw) and name.endswith("_")}
_DRAWS |= {getattr(torch.Tensor, name) for name in _RANDOM}


class Undrawn(TorchFunctionMode):
    """Leave parameters as they are allocated: of a model whose weights are loaded next, or that has
    none to hold.

    Drawing them takes most of the time in which a model is built: a second for a ViT-B, longer on
        the meta device.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWS:
            tensor = args[0] if args else kwargs["tensor"]
            # buffers need not be among what is loaded
            if tensor.is_meta or isinstance(tensor, nn.Parameter):
                return tensor
        return func(*args, **kwargs)


@dataclass(frozen=True)
class Allowance:
    """How much a model may be, by what is stored of it."""

    tensors: int = 20_000  # registered while it is built, counted again where one replaces another
    modules: int = 20_000
    numbers: int = 2**31


def stored_allowance(files: Iterable[Path]) -> Allowance:
    """Return how much the model of some safetensors files may be; their headers have been found to
    be right.

    Raises:
        OSError, SafetensorError, Beyond: as `open_header`.
    """
    tensors = numbers = 0
    for file in files:
        with open_header(file) as opened:
            for key in opened.keys():  # noqa: SIM118
                tensors += 1
                numbers += math.prod(opened.get_slice(key).get_shape())
    return Allowance(4 * tensors + 1000, 10 * tensors + 1000, 2 * numbers + 2**24)


@contextmanager
def open_header(file: Path) -> Iterator[Any]:
    """Open a safetensors file whose header has a length that its library may parse.

    Raises:
        OSError: it can't be read, or is no file.
        SafetensorError: it is no safetensors file, or damaged.
        Beyond: its header is longer than 25 MB, or than the file.
    """
    if file.exists() and not file.is_file():
        raise OSError("not a regular file")
    with file.open("rb") as raw:
        first = raw.read(8)
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
    if length > HEADER_BYTES:
        raise LimitExceeded(f"a header of {length:,} bytes; at most {HEADER_BYTES:,}")
    if length + 8 > file.stat().st_size:
        raise LimitExceeded(f"a header of {length:,} bytes in a file of {file.stat().st_size:,}")
    with safetensors.safe_open(file, framework="pt") as opened:
        yield opened


def check_arguments(arguments: Any) -> None:
    """Raise Beyond where arguments for a timm architecture choose more than the architecture."""
    if not isinstance(arguments, dict):
        raise LimitExceeded("arguments that are no mapping")
    wrong = sorted(_NOT_ARCHITECTURE.intersection(arguments))
    if wrong:
        raise LimitExceeded(f"{wrong[0]} among the architecture's arguments")


def check_reach(config: dict[str, Any]) -> None:
    """Raise Beyond where a config.json names something outside its folder for a library to open or
    run."""
    waiting: list[Any] = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
            for key in _CHOOSING.intersection(value):
                if any(mark in str(value[key]) for mark in "/\\:") and value[key] is not None:
                    raise LimitExceeded(f"{key}: {str(value[key])[:200]}, which is no plain name")
            for key in ("num_labels", "num_classes"):
                if isinstance(value.get(key), int | float) and value[key] > CLASSES:
                    raise LimitExceeded(f"{key}: {value[key]:,}; at most {CLASSES:,}")
        elif isinstance(value, list):
            waiting += value
    if config.get("quantization_config") is not None:
        raise LimitExceeded("quantization_config: quantized weights can't be merged")
    if config.get("model_args") is not None:
        check_arguments(config["model_args"])


def check_depth(tree: Any, allowed: Allowance) -> None:
    """Raise Beyond where a model would be deeper than it has tensors: libraries list its layers
    before they build."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            inner = value if isinstance(value, list) else [value]
            counts = [one for one in inner if isinstance(one, int | float)]
            if _DEPTH.search(str(key)) and max(counts, default=0) > allowed.tensors:
                raise LimitExceeded(
                    f"{key}: {max(counts)}; at most {allowed.tensors:,} by what is stored"
                )
            check_depth(value, allowed)


def check_shards(index: Any, folder: Path) -> None:
    """Raise Beyond where the index of sharded weights names anything but safetensors files beside
    it."""
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise LimitExceeded("an index without weight_map")
    for shard in map(str, set(map(str, shards.values()))):
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise LimitExceeded(f"a shard at {shard[:200]}, not a safetensors file in the folder")
        if not (folder / shard).is_file():
            raise LimitExceeded(f"a shard {shard[:200]} that is not there")


def check_pictures(preprocessing: Any) -> None:
    """Raise Beyond where pictures would be made larger than 4,096 pixels a side."""
    if isinstance(preprocessing, dict):
        crop = preprocessing.get("crop_pct")
        if isinstance(crop, int | float) and not _SMALLEST_CROP <= crop <= 10:
            raise LimitExceeded(f"crop_pct {crop}; {_SMALLEST_CROP} to 10")
        for key, value in preprocessing.items():
            if key not in ("min_pixels", "max_pixels"):
                check_pictures(value)
    elif isinstance(preprocessing, list | tuple):
        for value in preprocessing:
            check_pictures(value)
    # a NaN neither
    elif isinstance(preprocessing, int | float) and not -SIDE <= preprocessing <= SIDE:
        raise LimitExceeded(
            f"{preprocessing} in the preprocessing; pictures of at most {SIDE} pixels a side"
        )


@contextmanager
def rehearsal(allowed: Allowance) -> Iterator[list[nn.Module]]:
    """Build a model on the meta device, into the list that is given; it is checked where the block
    ends.

    Raises:
        ParentError: it is more than what is allowed; said as soon as it is known.
    """
    counts = {"tensors": 0, "modules": 0}

    def count(what: str, limit: int) -> None:
        counts[what] += 1
        if counts[what] > limit:
            raise _too_large(f"at most {limit:,} {what} by what is stored", "more")

    def tensor(module: nn.Module, name: str, value: Any) -> None:
        count("tensors", allowed.tensors)

    def inner(module: nn.Module, name: str, value: Any) -> None:
        count("modules", allowed.modules)

    built: list[nn.Module] = []
    with ExitStack() as stack:
        for handle in (
            hooks.register_module_parameter_registration_hook(tensor),
            hooks.register_module_buffer_registration_hook(tensor),
            hooks.register_module_module_registration_hook(inner),
        ):
            stack.callback(handle.remove)
        # What it draws, if anything, must not be missing from the streams of the model that is then
        # built.
        with torch.random.fork_rng(devices=[]), torch.device("meta"), Undrawn():
            yield built
    numbers = sum(t.numel() for model in built for t in (*model.parameters(), *model.buffers()))
    if numbers > allowed.numbers:
        raise _too_large(f"at most {allowed.numbers:,} numbers by what is stored", f"{numbers:,}")


def _too_large(expected: str, got: str) -> ParentError:
    return ParentError(
        "the configuration describes a larger model than its weights",
        expected=expected,
        got=got,
        hint="mend the configuration (config.json, or arch and arch_args)",
    )
