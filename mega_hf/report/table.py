"""The table of a report, its verdict, and the remarks needed to read them."""

from __future__ import annotations

import html
from dataclasses import dataclass

from mega_hf.evaluation.statistics import wilson_interval
from mega_hf.report.record import ModelRow, PairedTest, RunRecord
from mega_hf.runtime.untrusted import printable

_SELECTING = ("greedy_soup", "line-sweep", "random")  # baselines selected on validation
_COLUMNS = ("model", "role", "validation", "test", "95 % interval")
_ROLES = {"treated_parent": "parent", "ceiling": "reference", "intermediate": "merge"}


@dataclass(frozen=True, repr=False)
class Report:
    """The accuracies of all models of a run, with intervals and paired tests.

    `str(report)` is a table with a verdict and remarks; a notebook shows it as HTML.
    """

    record: RunRecord

    @property
    def models(self) -> list[ModelRow]:
        """The rows of the table: parents, baselines, merges, and the merged model last."""
        return self.record.models

    @property
    def paired(self) -> PairedTest:
        """The paired test of the merged model against the best parent on validation."""
        return self.record.paired

    @property
    def comparisons(self) -> list[PairedTest]:
        """The paired tests of the merged model: against the best parent, and the greedy soup."""
        soup = self.record.paired_soup
        return [self.record.paired, *([soup] if soup else [])]

    @property
    def merged(self) -> ModelRow:
        """The row of the merged model."""
        return self.record.merged

    @property
    def is_selected(self) -> bool:
        """Whether validation accuracy decided which model the final merge returned."""
        return bool(self.record.final.merge.get("method") != "uniform_soup")

    @property
    def has_tree(self) -> bool:
        """Whether there are merges below the final one."""
        return any(model.role == "intermediate" for model in self.models)

    @property
    def verdict(self) -> str:
        """Whether the merged model is better than the best parent, in one or two sentences."""
        copied = self.record.copied_parent
        if copied is None:
            return self._comparison()
        name = printable(self._as_compared(copied))
        better = "clearly better on the held-out rows" if self.record.second_look else "better"
        copy = f"The merged model is a copy of the parent {name}: no merge was {better}."
        is_best = self.paired.against in (copied, recalibrated(copied))
        return copy if is_best else f"{copy} {self._comparison()}"

    def _as_compared(self, parent: str) -> str:
        return recalibrated(parent) if self.record.is_recalibrated else parent

    def _comparison(self) -> str:
        other = self.record.row(self.paired.against)
        best = f"{printable(other.name)}, the best parent on validation"
        gain = 100 * (self.merged.test.accuracy - other.test.accuracy)
        if gain == 0:
            return f"No improvement over {best} (equal on test)."
        test = f"McNemar, p {format_p(self.paired.p)}"
        if self.paired.p >= 0.05:
            return f"No significant improvement over {best} ({gain:+.2f} points on test; {test})."
        word = "Better" if gain > 0 else "Worse"
        return f"{word} than {best}, by {abs(gain):.2f} points on test ({test})."

    @property
    def remarks(self) -> list[str]:
        """Remarks on the held-out selection, the greedy soup, selection bias and the ensemble."""
        return [*self._selection(), *self._soup(), *self._bias(), *self._ensemble()]

    def _selection(self) -> list[str]:
        selection = self.record.second_look
        if selection is None:
            return []
        name, role = selection.chosen, self.record.row(selection.chosen).role
        if role == "parent":
            kind = "parent, recalibrated" if self.record.is_recalibrated else "parent"
        else:
            kind = "best of the search" if role == "searched" else role
        chosen = f"Final model, chosen on {selection.search.n:,} held-out rows: {printable(name)}"
        counts = {finalist.name: finalist.correct or 0 for finalist in selection.finalists}
        ahead = [
            f"{printable(other)} ({count:,} correct)"
            for other, count in counts.items()
            if count > counts.get(name, 0)
        ]
        remarks = [f"{chosen} ({kind})."]
        if ahead:
            verb = "was" if len(ahead) == 1 else "were"
            remarks.append(
                f"On these rows {' and '.join(ahead)} {verb} ahead of {printable(name)}"
                f" ({counts.get(name, 0):,} correct), but by no more than one standard error: a"
                " searched model must be ahead by more."
            )
        return remarks

    def _soup(self) -> list[str]:
        paired, rows = self.record.paired_soup, self.merged.test.n
        if paired is None:
            return []
        gain = 100 * (paired.only_merged_right - paired.only_other_right) / rows
        interval = f"95 % interval {100 * paired.low:+.2f} to {100 * paired.high:+.2f}"
        return [
            f"Difference from {printable(paired.against)}: {gain:+.2f} points on test"
            f" ({interval}; McNemar, p {format_p(paired.p)})."
        ]

    def _bias(self) -> list[str]:
        """Compare the optimism of the search's best with that of the parents."""
        searched = next((m for m in self.models if m.role == "searched"), self.merged)
        role = "treated_parent" if self.record.is_recalibrated else "parent"
        parents = [model for model in self.models if model.role == role]
        if not parents or not self.is_selected:
            return []
        own, *others = [m.validation.accuracy - m.test.accuracy for m in (searched, *parents)]
        return [
            f"Selection bias: the best of the search is {_points(own)} on validation, where it was"
            f" selected, than on test; the parents are on average"
            f" {_points(sum(others) / len(others))}."
        ]

    def _ensemble(self) -> list[str]:
        count = sum(model.role == "parent" for model in self.models)
        return [
            f"The ensemble of the {count} parents has {100 * model.test.accuracy:.2f} % on test,"
            f" at {count} times the cost of inference."
            for model in self.models
            if model.role == "ceiling"
        ]

    def rows(self) -> list[tuple[str, ...]]:
        """Return the cells of the table as text, the header first."""
        header = (*_COLUMNS[:3], "held-out", *_COLUMNS[3:])
        rows = [header, *map(self._row, self.models)]
        if self.record.second_look is None:
            rows = [(*row[:3], *row[4:]) for row in rows]
        return rows

    def _row(self, model: ModelRow) -> tuple[str, ...]:
        low, high = wilson_interval(model.test.correct, model.test.n)
        role = _ROLES.get(model.role, model.role)
        if self.has_tree and model.level:
            role += f", level {model.level}"
        selected = " (selected on)" if self._is_selected(model) else ""
        return (
            printable(model.name),
            role,
            f"{100 * model.validation.accuracy:.2f} %{selected}",
            self._held_out(model),
            f"{100 * model.test.accuracy:.2f} %",
            f"{100 * low:.2f} to {100 * high:.2f}",
        )

    def _held_out(self, model: ModelRow) -> str:
        """Return the accuracy of a finalist of the held-out selection; of others an empty text."""
        selection = self.record.second_look
        if selection is None or (model.role == "parent" and self.record.is_recalibrated):
            return ""  # With recalibration, the recalibrated parents were the finalists.
        name = selection.chosen if model.role == "merged" else model.name
        for finalist in selection.finalists:
            shown = finalist.name
            if name == (recalibrated(shown) if model.role == "treated_parent" else shown):
                return f"{100 * finalist.accuracy:.2f} %"
        return ""

    def _is_selected(self, model: ModelRow) -> bool:
        """Return whether a model was selected by its validation accuracy, which is optimistic."""
        if model.role == "merged" and self.record.second_look is not None:
            return self._is_selected(self.record.row(self.record.second_look.chosen))
        if model.role in ("merged", "searched"):
            return self.is_selected
        return model.role == "intermediate" or (
            model.role == "baseline" and model.name in _SELECTING
        )

    def __str__(self) -> str:
        rows = self.rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join(
            [lines[0], "-" * len(lines[0]), *lines[1:], "", self.verdict, *self.remarks]
        )

    def __repr__(self) -> str:
        return f"<Report of {len(self.models)} models: {self.verdict}>"

    def _repr_html_(self) -> str:
        """Return the table, the verdict and the remarks as HTML, for notebooks."""
        header, *rows = self.rows()
        lines = [_html_row("th", header), *(_html_row("td", row) for row in rows)]
        text = "<br>".join(html.escape(line) for line in self.remarks)
        verdict = html.escape(self.verdict)
        return f"<table>{''.join(lines)}</table><p><b>{verdict}</b><br>{text}</p>"


def recalibrated(name: str) -> str:
    """Return the name of a recalibrated parent in a report."""
    return f"{name} recalibrated"


def _points(difference: float) -> str:
    return f"{abs(100 * difference):.2f} points {'higher' if difference >= 0 else 'lower'}"


def _html_row(tag: str, cells: tuple[str, ...]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def format_p(value: float) -> str:
    """Format a p-value with two digits and its relation sign; never as 0."""
    return "< 0.0001" if value < 1e-4 else f"= {value:.2g}"
