"""What a report says of its models: a table, one honest sentence, and what else must be known to
read them."""

from __future__ import annotations

from dataclasses import dataclass

from mega_hf.evaluation.statistics import wilson_interval
from mega_hf.report.record import ModelRow, PairedTest, RunRecord
from mega_hf.runtime.untrusted import printable

_ROLES = ("parent", "treated_parent", "searched", "merged")
_CHOOSING = ("greedy_soup", "line-sweep", "random")  # baselines that validation rows chose
_LOOK = "second look"  # a column of its own, where there was one
_COLUMNS = ("model", "role", "validation", "test", "95 % interval")


@dataclass(frozen=True)
class Report:
    """Every model's right answers on validation and test, and the paired test; `str` is a table."""

    record: RunRecord

    @property
    def models(self) -> list[ModelRow]:
        """The rows of the table."""
        return self.record.models

    @property
    def paired(self) -> PairedTest:
        """The paired test of the merged model against its best parent."""
        return self.record.paired

    @property
    def comparisons(self) -> list[PairedTest]:
        """The merged model's paired tests, that against the best parent first."""
        soup = self.record.paired_soup
        return [self.record.paired, *([soup] if soup else [])]

    @property
    def merged(self) -> ModelRow:
        """The merged model's row."""
        return self.record.merged

    @property
    def is_selected(self) -> bool:
        """Whether validation rows decided which model the final merge gave."""
        return bool(self.record.final.merge.get("method") != "uniform_soup")

    @property
    def is_recalibrated_run(self) -> bool:
        """Whether parents stand there with their statistics computed anew, as the merge's were."""
        return any(model.role == "treated_parent" for model in self.models)

    @property
    def verdict(self) -> str:
        """Say in one sentence whether the merged model is better than its best parent, and how sure
        that is."""
        other = self.record.row(self.paired.against)
        best = f"the parent that is best on validation, {printable(other.name)}"
        gain = 100 * (self.merged.test.accuracy - other.test.accuracy)
        if gain == 0:
            return f"The merged model is not better than {best}: equal on test."
        test = f"McNemar's exact test, p {format_p(self.paired.p)}"
        if self.paired.p >= 0.05:
            side = "above" if gain > 0 else "below"
            return (
                f"The merged model is not shown to be better than {best}: "
                f"{abs(gain):.2f} points {side} it on test, which may be chance ({test})."
            )
        word = "better" if gain > 0 else "worse"
        difference = f"{abs(gain):.2f} points on test ({test})"
        return f"The merged model is {word} than {best}: {difference}."

    @property
    def remarks(self) -> list[str]:
        """What else is to be said, a sentence each: who was chosen, the greedy soup, selection
        bias, the ensemble."""
        return [*self._choice(), *self._soup(), *self._bias(), *self._ceiling()]

    def _choice(self) -> list[str]:
        if self.record.second_look is None:
            return []
        name = self.record.second_look.chosen
        parent = "the recalibrated parent" if self.is_recalibrated_run else "the parent"
        role = {"parent": parent, "baseline": "the baseline", "searched": "the search's best,"}
        who = next((role.get(model.role, "") for model in self.models if model.name == name), "")
        rows = self.record.second_look.search.n
        said = (
            f"Named the merged model on {rows:,} rows that no search has seen: {who}"
            f" {printable(name)}"
        )
        looked = {one.name: one.correct or 0 for one in self.record.second_look.finalists}
        own = looked.get(name, 0)
        more = [f"{printable(one)} ({right:,})" for one, right in looked.items() if right > own]
        if more:
            had = f"{' and '.join(more)} had more right there than its {own:,}"
            return [
                f"{said}. {had}, but not by more than a standard error, as what was searched for"
                " must."
            ]
        return [f"{said}."]

    def _soup(self) -> list[str]:
        if self.record.paired_soup is None:
            return []
        paired, rows = self.record.paired_soup, self.merged.test.n
        gain = 100 * (paired.only_merged_right - paired.only_other_right) / rows
        low, high = 100 * paired.low, 100 * paired.high
        interval = (
            f"95 % interval {low:+.2f} to {high:+.2f} by paired bootstrap; p {format_p(paired.p)}"
        )
        return [f"Against {printable(paired.against)}: {gain:+.2f} points on test ({interval})."]

    def _bias(self) -> list[str]:
        """Say by how much the search's best is better on the rows that chose it than on those that
        did not."""
        by_role = {role: [model for model in self.models if model.role == role] for role in _ROLES}
        searched = (by_role["searched"] or by_role["merged"])[0]
        parents = by_role["treated_parent"] or by_role["parent"]
        if not parents or not self.is_selected:
            return []
        own, *others = [
            model.validation.accuracy - model.test.accuracy for model in (searched, *parents)
        ]
        return [
            f"Selection bias: on validation, which chose it, the search's best has {_points(own)}"
            " than on test; its parents, which were not chosen there, have"
            f" {_points(sum(others) / len(others))} on average."
        ]

    def _ceiling(self) -> list[str]:
        parents = sum(model.role == "parent" for model in self.models)
        return [
            f"The ensemble of the {parents} parents, which takes {parents} times as long to run,"
            f" has {100 * model.test.accuracy:.2f} % on test."
            for model in self.models
            if model.role == "ceiling"
        ]

    @property
    def has_tree(self) -> bool:
        """Whether there are merges below the final one."""
        return any(model.role == "intermediate" for model in self.models)

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table as text cells, the head first; of a tree each model's level stands
        beside its role."""
        rows: list[tuple[str, ...]] = [self._with_look(_COLUMNS, _LOOK)]
        for model in self.models:
            low, high = wilson_interval(model.test.correct, model.test.n)
            searched = " (selected on)" if self._is_selected(model) else ""
            validation = f"{100 * model.validation.accuracy:.2f} %{searched}"
            test = f"{100 * model.test.accuracy:.2f} %"
            level = f", level {model.level}" if self.has_tree and model.level else ""
            interval = f"{100 * low:.2f} to {100 * high:.2f}"
            role = (
                "parent" if model.role == "treated_parent" else printable(model.role)
            )  # its name says the rest
            row = (printable(model.name), role + level, validation, test, interval)
            rows.append(self._with_look(row, self._looked_at(model)))
        return rows

    def _with_look(self, row: tuple[str, ...], cell: str) -> tuple[str, ...]:
        return (*row[:3], cell, *row[3:]) if self.record.second_look is not None else row

    def _looked_at(self, model: ModelRow) -> str:
        """Return a model's accuracy in the second look; nothing if it was not there."""
        if self.record.second_look is None:
            return ""
        wanted = self.record.second_look.chosen if model.role == "merged" else model.name
        if model.role == "parent" and self.is_recalibrated_run:
            return ""  # it was there as it is treated
        for one in self.record.second_look.finalists:
            if one.n and wanted == (
                recalibrated(one.name) if model.role == "treated_parent" else one.name
            ):
                return f"{100 * (one.correct or 0) / one.n:.2f} %"
        return ""

    def _is_selected(self, model: ModelRow) -> bool:
        """Say whether a model was chosen by its validation figure, which is too high for that."""
        if model.role == "merged" and self.record.second_look is not None:
            chosen = next(one for one in self.models if one.name == self.record.second_look.chosen)
            return self._is_selected(chosen)
        if model.role in ("merged", "searched"):
            return self.is_selected
        return model.role == "intermediate" or model.name in _CHOOSING

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


def recalibrated(name: str) -> str:
    """Return what a report calls a parent whose statistics were computed anew, as the merge's
    were."""
    return f"{name} recalibrated"


def _points(difference: float) -> str:
    return f"{abs(100 * difference):.2f} points {'more' if difference >= 0 else 'less'}"


def format_p(value: float) -> str:
    """Return what follows `p` in a sentence; no p is ever shown as 0."""
    return "< 0.0001" if value < 1e-4 else f"= {value:.4f}"
