"""Compare a run's stored models with rebuilt ones."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from mega_hf.errors import ParentError, VerificationError
from mega_hf.models.compatibility import disagreements
from mega_hf.models.load import open_model
from mega_hf.models.loaded import LoadedModel
from mega_hf.runtime.files import file_digest, folder_digest, merged_digest
from mega_hf.verification.claims import COPY, RunClaims, changed
from mega_hf.weights.space import StateDict, WeightSpace

# Files that a library would load with a model.
_LOADED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "adapter_config.json",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.h5",
    "*.msgpack",
    "*.pkl",
    "*.py",
)


def compare_model(claims: RunClaims, name: str, rebuilt: LoadedModel) -> None:
    """Compare a merge's stored model, or its digest if it was not kept, with the rebuilt one.

    Raises:
        VerificationError: they differ.
    """
    stored, folder = claims.model_of(name), rebuilt.folder
    assert folder is not None, "it was saved before it was opened"
    expected, got = claims.merged_line(name)["file"], merged_digest(folder)
    is_merged = name == claims.plan.merged
    where = "merged" if is_merged else f"nodes/{name}"
    if stored is not None and merged_digest(stored) != expected:
        what = f"the weights{claims.describe_difference(name, rebuilt.state())}"
        blamed = weights_file(stored) if is_merged else where
        raise changed(blamed, what, expected, merged_digest(stored))
    if got != expected:
        raise VerificationError(
            "the same weights give another file on this machine",
            where="*.safetensors",
            expected=expected,
            got=got,
            hint="use the versions of safetensors and transformers that made the run",
        )
    if stored is None:
        return
    names = os.listdir(stored)
    if is_merged:
        _check_files(claims, stored)
        names = claims.files_beside_model
    _compare_configuration(stored, rebuilt, where, names)


def known_statistics(claims: RunClaims, name: str, space: WeightSpace) -> StateDict | None:
    """Return the statistics of a merge that follow from images, as its stored model has them.

    Returns:
        none (an empty dict) if all statistics follow from the weights; None if there is no model.

    Raises:
        VerificationError: the statistics are not those of the run.
    """
    if not space.recomputed:
        return {}
    folder = claims.model_of(name)
    if folder is None:
        return None
    try:
        state = open_model(folder).state()
    except ParentError as error:
        raise VerificationError.from_error(weights_file(folder), error, COPY) from None
    found, expected = space.statistics_digest(state), claims.merged_line(name)["statistics"]
    if found != expected:
        raise changed(weights_file(folder), f"BatchNorm's statistics of {name}", expected, found)
    return {entry: state[entry] for entry in space.recomputed}


def weights_file(folder: Path) -> str:
    """Return the name of the first file of weights in a folder."""
    return next((path.name for path in sorted(folder.glob("*.safetensors"))), "*.safetensors")


def _check_files(claims: RunClaims, model: Path) -> None:
    """Check the files of the merged model by the digests in result.json, or in the journal."""
    listed = {name: sha for name, sha in claims.record.files.items() if "/" not in name}
    for name, expected in listed.items():
        got = file_digest(model / name) if (model / name).is_file() else "none"
        if got != expected:
            raise changed(name, "the model's files", expected, got)
    expected, got = claims.merged_line(claims.plan.merged)["folder"], folder_digest(model)
    if not claims.record.files and got != expected:
        raise changed("merged", "the model's files", expected, got)


def _compare_configuration(
    stored: Path, rebuilt: LoadedModel, where: str, names: Iterable[str]
) -> None:
    """Compare the configurations, and check that no foreign file would be loaded with the model."""
    folder = rebuilt.folder
    assert folder is not None, "it was saved before it was opened"
    for what, expected, got in disagreements(rebuilt, open_model(stored, "stored")):
        raise changed(where, f"the model's {what}", expected, got)
    foreign = [
        name
        for name in names
        if any(fnmatchcase(name, pattern) for pattern in _LOADED) and not (folder / name).exists()
    ]
    if foreign:
        expected = ", ".join(sorted(path.name for path in folder.iterdir()))
        what = "files that would be loaded with the model"
        raise changed(where, what, expected, ", ".join(sorted(foreign)))
