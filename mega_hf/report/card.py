"""Render the model card of a run from result.json, by the template card_template.md."""

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
from mega_hf.report.record import DataSource, ParentRow, RunRecord
from mega_hf.report.result import MergeResult, tree_rows
from mega_hf.report.table import format_p
from mega_hf.runtime.files import write_whole
from mega_hf.runtime.untrusted import printable

_TEMPLATE = Path(__file__).with_name("card_template.md")
_METHODS = {
    "mega": "a genetic algorithm (MeGA) that searches the weights between and around the parents",
    "cma-es": "an evolution strategy (CMA-ES) that searches how much of each parent to mix",
    "random": "a random search over mixtures of the parents' weights",
    "line-sweep": "a sweep along the line between the weights of two parents",
    "uniform_soup": "averaging the parents' weights (uniform soup)",
    "greedy_soup": (
        "averaging the parents' weights, best parent first, leaving out those that lower the"
        " accuracy (greedy soup)"
    ),
    "choose": "choosing the best parent",
}
_OWN_ARCHITECTURES = "cifar_resnet"  # the prefix of the names that mega_hf registers with timm


def render_card(result: MergeResult) -> str:
    """Return the card with its front matter.

    Raises:
        RunError: the record has values of which no card can be made.
    """
    try:
        return _rendered(result)
    except MegaError:
        raise
    except Exception as error:  # The record may be a stranger's.
        raise RunError(
            "no card can be made of this result",
            where=str(result.folder),
            expected="result.json as a run wrote it",
            got=printable(f"{type(error).__name__}: {error}")[:300],
            hint="delete it, then run the same mega-hf merge command to write it again",
        ) from None


def _rendered(result: MergeResult) -> str:
    record, report = result.record, result.report
    is_own = record.architecture.startswith(_OWN_ARCHITECTURES)
    card = ModelCard.from_template(
        _metadata(record),
        template_str=_TEMPLATE.read_text(encoding="utf-8"),
        title=escape_markdown(record.name),
        r=record,
        repository=slug(record.repository or ""),
        revision=slug(record.revision or ""),
        color_mode="L" if record.channels == 1 else "RGB",
        rows=[[escape_markdown(cell) for cell in row] for row in report.rows()],
        method=_method(record),
        verdict=escape_markdown(report.verdict),
        remarks=report.remarks,
        p=format_p(record.paired.p),
        own_architecture=slug(record.architecture) if is_own else "",
        local_parents=[slug(p.name) for p in record.parents if p.hub is None and p.train is None],
        has_trained_parents=any(p.train for p in record.parents),
        with_parents=_has_parents(record),
        local_keys=[".".join(key) for key in placeholder_keys(record.recipe)],
        mermaid=draw_mermaid(record) if result.has_tree else "",
        source=_source,
        data_source=_data_source(record.data.source),
        with_nodes=any(name.startswith("nodes/") for name in record.files),
        escape=escape_markdown,
        slug=slug,
    )
    front, body = split_card(str(card))
    return f"---\n{dump(front)}---\n\n{seal(body)}"


def _method(record: RunRecord) -> str:
    """Describe the method of the merged model, or of the search that found no better model."""
    made = {node.name: node for node in (record.final, *record.baselines)}
    chosen = record.second_look.chosen if record.second_look else record.final.name
    node = made.get(chosen, record.final)
    method = _METHODS[str(node.merge["method"])]
    if node is record.final and len(record.nodes) > 1:
        method += f", in a tree of {len(record.nodes)} merges"
    if node.merge.get("align", "none") != "none":
        method += ", after aligning their channels"
    return method


def _has_parents(record: RunRecord) -> bool:
    """Return whether all parents that were trained for the run are in the copy."""
    folders = {str(name).split("/")[1] for name in record.files if str(name).startswith("parents/")}
    return bool(folders) and folders >= {p.name for p in record.parents if p.train}


def existing_card(result: MergeResult) -> Card | None:
    """Return the card in the run folder, or None.

    Raises:
        HubError: it is not UTF-8.
    """
    file = result.folder / "README.md"
    if not file.is_file():
        return None
    return Card.read(file.read_bytes(), str(file), split_card(render_card(result))[0])


def draw_mermaid(record: RunRecord) -> str:
    """Return the tree as a Mermaid graph, the parents below and the final merge on top."""
    names = {}
    for i, (name, model) in enumerate(tree_rows(record).items()):
        label = re.sub(r"[^\w.+@-]", " ", name)  # Other characters are syntax to Mermaid.
        names[name] = f'm{i}["{label}<br/>{100 * model.test.accuracy:.2f} %"]'
    lines = ["graph BT"]
    for node in record.nodes:
        inputs = " & ".join(names[parent] for parent in node.parents)
        lines.append(f"  {inputs} --> {names[node.name]}")
    return "\n".join(lines)


def escape_markdown(text: object) -> str:
    """Escape text for Markdown, HTML and the cell of a table."""
    flat = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(flat, quote=False))


def slug(text: object) -> str:
    """Drop all characters that names, digests, repositories and revisions do not have."""
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
    """Say where a parent came from, never by a path, and its license if it has one."""
    license = parent.license_name or parent.license
    suffix = f" ({escape_markdown(license)})" if license else ""
    if parent.hub:
        return f"{_link(parent.hub)} at `{slug(parent.revision)}`{suffix}"
    if parent.train:
        train = parent.train
        epoch = f", snapshot after epoch {train.epoch}" if train.epoch is not None else ""
        start = f", starting from {escape_markdown(train.start)}" if train.start else ""
        return f"trained for this merge with seed {train.seed}{start}{epoch}"
    return f"local: {escape_markdown(parent.local or parent.weights)}{suffix}"


def _data_source(source: DataSource) -> str:
    if source.hub:
        return f"{_link(source.hub, 'datasets/')} at `{slug(source.revision)}`"
    return f"local: {escape_markdown(source.local)}"


def _link(repository: str, kind: str = "") -> str:
    return f"[{escape_markdown(repository)}](https://huggingface.co/{kind}{quote(repository)})"


def write_card(result: MergeResult, overwrite: bool = False) -> None:
    """Write card and plots into the run folder, and keep what a user wrote into the card.

    Args:
        result: the run.
        overwrite: replace the whole card.

    Raises:
        HubError: the generated part of the card was edited by hand.
    """
    file, card = result.folder / "README.md", render_card(result)
    existing = existing_card(result)
    card = update_card(card, [existing]) if existing and not overwrite else card
    write_whole(result.folder / "fitness.png", plot_fitness(result.record))
    if result.has_tree:
        write_whole(result.folder / "tree.png", plot_tree(result.record))
    write_whole(file, card.encode())
