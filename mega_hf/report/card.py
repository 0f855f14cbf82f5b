"""A result becomes a model card: from result.json alone, by the template beside this file."""

from __future__ import annotations

import html
import re
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mega_hf.errors import MegaError, RunError
from mega_hf.models.licenses import agreed_license, license_of
from mega_hf.recipe.document import dump
from mega_hf.recipe.placeholders import placeholder_keys
from mega_hf.report.card_edits import Card, seal, split_card, update_card
from mega_hf.report.plots import plot_fitness, plot_tree
from mega_hf.report.record import DataSource, NodeResult, ParentRow, RunRecord
from mega_hf.report.result import MergeResult, tree_rows
from mega_hf.report.table import format_p
from mega_hf.runtime.files import write_whole
from mega_hf.runtime.untrusted import printable

_TEMPLATE = Path(__file__).with_name("card_template.md")
_METHODS = {  # of the final merge: how, and for what
    "mega": (
        "evolution (MeGA",
        (
            "): a genetic algorithm searched the weights between and around the parents for the"
            " most right answers on"
        ),
    ),
    "cma-es": (
        "an evolution strategy (CMA-ES)",
        (
            ": it adapted by how much of each parent the parts of the model are made, for the most"
            " right answers on"
        ),
    ),
    "choose": ("choice", ": the best of the models as they are, by right answers on"),
    "random": ("chance", ": the best of mixtures drawn at random, by right answers on"),
    "line-sweep": (
        "a sweep",
        (
            ": the best of points at equal distances on the line between the parents, by right"
            " answers on"
        ),
    ),
    "uniform_soup": ("averaging", ": the plain mean of the parents' weights, measured on"),
    "greedy_soup": (
        "averaging",
        ": parents joined it best first, each where it was not worse for that, by right answers on",
    ),
}
_OWN = "cifar_resnet"  # what our own architectures are called


def render_card(result: MergeResult) -> str:
    """Return the card, front matter included: of a pushed run's record, as it stands in its
    repository.

    Raises:
        RunError: result.json does not hold what a card says.
    """
    try:
        return _rendered(result)
    except MegaError:
        raise
    except Exception as error:  # a record changed by hand, or a stranger's
        raise RunError(
            "no card can be made of this result",
            where=str(result.folder),
            expected="result.json as a run wrote it",
            got=printable(f"{type(error).__name__}: {error}")[:300],
            hint="delete it; the same mega-hf merge command makes it again",
        ) from None


def _rendered(result: MergeResult) -> str:
    record = result.record
    card = ModelCard.from_template(
        _metadata(record),
        template_str=_TEMPLATE.read_text(encoding="utf-8"),
        title=escape(record.name),
        r=record,
        repository=plain(record.repository or ""),
        revision=plain(record.revision or ""),
        colours="L" if record.channels == 1 else "RGB",
        rows=[[escape(cell) for cell in row] for row in result.report.rows()],
        how=_how(record),
        recalibrated=result.report.is_recalibrated_run,
        verdict=escape(result.report.verdict),
        remarks=result.report.remarks,
        p=format_p(record.paired.p),
        own_architecture=(
            plain(record.architecture) if record.architecture.startswith(_OWN) else ""
        ),
        recipe=dump(record.recipe),
        places=[plain(p.name) for p in record.parents if p.hub is None and p.train is None],
        trained=any(p.train for p in record.parents),
        with_parents=_has_parents(record),
        local=[".".join(key) for key in placeholder_keys(record.recipe)],
        mermaid=draw_mermaid(record) if result.has_tree else "",
        source=_source,
        data_source=_data_source,
        with_nodes=any(name.startswith("nodes/") for name in record.files),
        escape=escape,
        plain=plain,
    )
    front, body = split_card(str(card))
    return f"---\n{dump(front)}---\n\n{seal(body)}"


def _how(record: RunRecord) -> str:
    """Say how the merged model was made: as the final merge was, or whom the second look named, or
    as a parent."""
    root, parents = record.nodes[-1], [parent.name for parent in record.parents]
    look = record.second_look
    named = look.chosen if look else root.name
    made = {node.name: node for node in (root, *record.baselines)}.get(named)
    kept = named if made is None else _kept(made)
    if kept in parents:
        why = "none of the mixtures was surely better" if look else "nothing better was found"
        return f"keeping one of them, {escape(kept)}: {why}, of those searched for on"
    assert made is not None, "the second look names a model of the run"
    how, what = _METHODS.get(str(made.merge.get("method")), _METHODS["mega"])
    is_tree = named == root.name and len(record.nodes) > 1
    levels = f", {len(record.nodes)} merges, level by level" if is_tree else ""
    if made.merge.get("align", "none") != "none":
        what = what.replace("weights,", "weights, their channels in one order,")
    return f"{how}{levels}{what}"


def _kept(node: NodeResult) -> str:
    """Return which of its inputs a search found nothing better than; an empty text if there is
    none."""
    settings, best, inputs = node.merge, node.search, node.parents
    has_them = settings.get("method") in ("mega", "random") and settings.get("founders", {}).get(
        "include_parents"
    )
    return (
        str(inputs[best.index])
        if has_them and best.generation == 1 and best.index < len(inputs)
        else ""
    )


def _has_parents(record: RunRecord) -> bool:
    """Say whether all parents that were trained for the run lie beside the card."""
    folders = {str(name).split("/")[1] for name in record.files if str(name).startswith("parents/")}
    return bool(folders) and folders >= {p.name for p in record.parents if p.train}


def card_there(result: MergeResult) -> Card | None:
    """Return the card that lies in the run folder, if there is one.

    Raises:
        HubError: it is not UTF-8.
    """
    file = result.folder / "README.md"
    if not file.is_file():
        return None
    return Card.read(file.read_bytes(), str(file), split_card(render_card(result))[0])


def draw_mermaid(record: RunRecord) -> str:
    """Return the tree as a Mermaid graph, which the Hub's pages draw: parents below, the final
    merge on top."""
    models = tree_rows(record)
    keys = {name: f"m{i}" for i, name in enumerate(models)}
    lines = ["graph BT"]
    for name, model in models.items():
        accuracy = 100 * model.test.accuracy
        label = re.sub(r"[^\w.+@-]", " ", name)  # whatever else would be Mermaid's own syntax
        lines.append(f'  {keys[name]}["{label}<br/>{accuracy:.2f} %"]')
    for node in record.nodes:
        lines += [f"  {keys[parent]} --> {keys[node.name]}" for parent in node.parents]
    return "\n".join(lines)


def escape(text: object) -> str:
    """Make text of others harmless in Markdown and HTML, and in a table's cell."""
    flat = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(flat, quote=False))


def plain(text: object) -> str:
    """Return what of a text can stand in code: names, digests, repositories and revisions have
    nothing else."""
    return re.sub(r"[^\w./@+-]", "", str(text))


def _metadata(record: RunRecord) -> ModelCardData:
    starts = [parent.train.start for parent in record.parents if parent.train]
    hub = [parent.hub for parent in record.parents if parent.hub] + [
        start.partition("@")[0] for start in starts if start and "/" in start
    ]
    source = record.data.source
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=source.hub or "local",
            dataset_name=source.hub or source.local or "",
            dataset_split=split.spec,
            dataset_revision=source.revision,
            metric_type="accuracy",
            metric_name=f"Accuracy ({name})",
            verified=False,
            metric_value=round(count.accuracy, 6),
        )
        for name, split, count in (
            ("validation", record.data.validation, record.merged.validation),
            ("test", record.data.test, record.merged.test),
        )
    ]
    licenses = {parent.name: license_of(parent.license_fields) for parent in record.parents}
    return ModelCardData(
        base_model=list(dict.fromkeys(hub)) or None,
        base_model_relation="merge",
        library_name=record.library,
        **(record.license or agreed_license(licenses) or {}),
        pipeline_tag="image-classification",
        tags=["merge", "mega", "mega-hf"],
        datasets=[source.hub] if source.hub else None,
        metrics=["accuracy"],
        model_name=record.name,
        eval_results=results,
    )


def _source(parent: ParentRow) -> str:
    """Say where a parent came from, never by a path; and its license, if it has one."""
    license = parent.license_name or parent.license
    under = f" ({escape(license)})" if license else ""
    if parent.hub:
        return f"{_link(parent.hub)} at `{plain(parent.revision)}`{under}"
    if parent.train:
        train = parent.train
        start = f", starting at {escape(train.start)}" if train.start else ""
        epoch = f", as it was after epoch {train.epoch}" if train.epoch is not None else ""
        return f"trained here from seed {train.seed}{start}{epoch}"
    return f"local: {escape(parent.local or parent.weights)}{under}"


def _data_source(source: DataSource) -> str:
    """Say where the data set came from, never by a path."""
    if source.hub:
        return f"{_link(source.hub, 'datasets/')} at `{plain(source.revision)}`"
    return f"local: {escape(source.local)}"


def _link(repository: str, kind: str = "") -> str:
    return f"[{escape(repository)}](https://huggingface.co/{kind}{quote(repository)})"


def write_card(result: MergeResult, overwrite: bool = False) -> None:
    """Write the card and its plots into the run folder; what was written by hand into the card
    stays.

    Args:
        result: what the card tells of.
        overwrite: replace the whole card.

    Raises:
        HubError: a generated part of the card was changed by hand.
    """
    file, card = result.folder / "README.md", render_card(result)
    there = card_there(result)
    card = update_card(card, [there]) if there and not overwrite else card
    write_whole(result.folder / "fitness.png", plot_fitness(result.record))
    if result.has_tree:
        write_whole(result.folder / "tree.png", plot_tree(result.record))
    write_whole(file, card.encode())
