"""Load a run from a Hub repository into a folder."""

from __future__ import annotations

from pathlib import Path

from mega_hf.hub import repository as hub
from mega_hf.hub.bundle import OURS, changed_models, check_empty, copied_models, restore
from mega_hf.report.result import MergeResult
from mega_hf.runtime.files import check_writable


def pull(repository: str, out: str | Path | None = None) -> MergeResult:
    """Restore the run folder of a merge that was pushed.

    Args:
        repository: ORG/NAME or ORG/NAME@REVISION.
        out: the run folder; `runs/NAME` in the working folder by default.

    Raises:
        MegaError: the repository can't be downloaded, or is not an unchanged pushed merge.
    """
    name, _, revision = repository.partition("@")
    target = Path(out) if out is not None else Path("runs") / name.rpartition("/")[2]
    hub.check_name(name)
    check_writable(target, "the run folder", "use another --out")
    check_empty(target)
    source, commit = hub.fetch(name, revision or None, OURS)
    pinned = f"{name}@{commit[:12]}"
    models = copied_models(source, pinned)
    fetched = hub.fetch(name, commit, [*OURS, *models])[0]
    if changed_models(fetched):
        # the download, or the cache, may be damaged
        fetched = hub.fetch(name, commit, [*OURS, *models], afresh=True)[0]
    return restore(fetched, target, pinned)
