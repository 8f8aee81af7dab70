"""Which graded or labelled pairs are positives. Where that cannot be known the set is refused: it is never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qwen3emb.config.labelled import LabelledDatasetConfig
from qwen3emb.core.errors import UserError
from qwen3emb.core.rejects import BadRecord
from qwen3emb.labelled.formats import Record
from qwen3emb.labelled.marks import Mark, Meaning, meanings_of

__all__ = ["Grades"]


@dataclass
class Grades:
    """The grades of one set so far.

    Attributes:
        name: of the set.
        cfg: its section.
        seen: field -> grade of the first record with grades of unknown meaning, once there is one; later records must
            have the same grades.
        labelled: a record had a label whose meaning is known, so records without one are no positives.
        fields: the fields of all records, as keys.
    """

    name: str
    cfg: LabelledDatasetConfig
    seen: dict[str, float] | None = None
    labelled: bool = False
    fields: dict[str, None] = field(default_factory=dict)

    def check(self, record: Record, file: str, row: int) -> tuple[float | None, bool]:
        """Decide whether a record's positives are positives.

        They are where a grade reaches `min_grade`, or a label says so (NLI's entailment, ms-swift's 1). A record
        without such a label is a positive only if no record of the set has one, which is known at its end (`labelled`).
        For task `sts` every pair counts, whatever its grade.

        Args:
            record: the record.
            file: its file, for messages.
            row: its number in the file, for messages.

        Returns:
            (grade of the pair or None, whether it is a positive whatever the other records of the set have).

        Raises:
            BadRecord: they are no positives, or the grade is missing or bad; codes missing_grade, bad_grade,
                below_min_grade, no_positive, missing_label.
            UserError: it cannot be decided: grades differ or are not above 0, and `min_grade` is not set.
        """
        if self.cfg.task == "sts":
            return _sts_grade(record), True
        meanings = list(meanings_of(self._counted(record)))
        grade = _first_grade(meanings)
        rest = self._not_compared(meanings) if self.cfg.min_grade is not None else meanings
        self.labelled = self.labelled or _explained(rest)
        for meaning in rest:
            if meaning.instead:
                raise BadRecord(
                    f"no_positive: field {meaning.mark.field!r} says {meaning.instead}, so this is no positive"
                )
        if self.cfg.min_grade is None and record.nli and not _explained(meanings) and self._has_label(record):
            self.labelled = True
            raise BadRecord("missing_label: the label of a pair of NLI is empty")
        self._check_unexplained(record, meanings, rest, file, row)
        return grade, _explained(meanings) or self.cfg.min_grade is not None

    def _has_label(self, record: Record) -> bool:
        """Whether the record has a label field, and all of its label fields are empty."""
        labels = [m for m in record.marks if self.cfg.columns.grade or not m.score]
        return bool(labels) and not any(meanings_of(labels))

    def missing_label(self) -> str:
        """Why a record without a label is refused where others have one."""
        return "missing_label: it has no label whose meaning is known, other records of the set have one"

    def check_columns(self) -> None:
        """Refuse names of columns that no record has.

        Raises:
            UserError: `columns` names one.
        """
        names = self.cfg.columns
        for name in (names.query, names.positive, *names.negatives, names.grade, names.label):
            if name and self.fields and name not in self.fields:
                raise UserError(
                    f"{self.cfg.path}: no record has the field {name!r} that labelled.sets.{self.name}.columns names; "
                    f"they have {', '.join(self.fields)}"
                )

    def _counted(self, record: Record) -> Sequence[Mark]:
        """The marks that describe the pair: beside negatives, scores are margins or lists, unless configured."""
        if not record.negatives:
            return record.marks
        use_scores = self.cfg.min_grade is not None or bool(self.cfg.columns.grade)
        return [m for m in record.marks if not isinstance(m.value, list) and (use_scores or not m.score)]

    def _not_compared(self, meanings: Sequence[Meaning]) -> list[Meaning]:
        """Compare grades with `min_grade`; return the meanings not compared: labels beside scores, and words."""
        numbers = [m for m in meanings if m.grade is not None]
        compared = [m for m in numbers if m.mark.score] or numbers
        for meaning in compared:
            if meaning.grade is not None and self.cfg.min_grade is not None and meaning.grade < self.cfg.min_grade:
                raise BadRecord(f"below_min_grade: field {meaning.mark.field!r} is {meaning.grade:g}")
        rest = [m for m in meanings if m not in compared]
        if not compared and not _explained(rest):
            raise BadRecord("below_min_grade: it has no grade")
        return rest

    def _check_unexplained(
        self, record: Record, meanings: Sequence[Meaning], rest: Sequence[Meaning], file: str, row: int
    ) -> None:
        """Refuse grades of unknown meaning, unless they are above 0 and the same in all records."""
        grades = {m.mark.field: m.grade for m in rest if m.instead is None and m.grade is not None}
        if (meanings or record.closed) and not grades:
            return
        wrong = [m for m in rest if m.instead is None and m.mark.numbers]
        known = grades if self.seen is None else self.seen
        differ = [f for f in {**grades, **known} if grades.get(f) != known.get(f)]
        low = [f for f, grade in grades.items() if grade <= 0]
        self.seen = known
        for name in [*(m.mark.field for m in wrong), *low, *differ]:
            raise self._refused(name, grades.get(name), known.get(name), file, row)

    def _refused(self, name: str, grade: float | None, first: float | None, file: str, row: int) -> UserError:
        finding = f"has no grade in field {name!r}" if grade is None else f"has the grade {grade:g} in field {name!r}"
        above = "" if grade == first else f", rows above have {'none' if first is None else format(first, 'g')}"
        return UserError(
            f"{file}, row {row}: it {finding}{above}, and nothing says from which grade on a pair is a positive; set "
            f"labelled.sets.{self.name}.min_grade (data describe: --min-grade), or task: sts to learn the grades; "
            "columns.grade names the one field that counts"
        )


def _explained(meanings: Sequence[Meaning]) -> bool:
    """Whether a mark alone says what the pair is."""
    return any(m.instead is not None for m in meanings)


def _first_grade(meanings: Sequence[Meaning]) -> float | None:
    """The grade of the row: that of a score, else that of a label."""
    ordered = sorted(meanings, key=lambda m: not m.mark.score)
    return next((m.grade for m in ordered if m.grade is not None), None)


def _sts_grade(record: Record) -> float:
    """The grade of a pair of a set of task sts: the first score, else the first label with a number.

    Raises:
        BadRecord: codes missing_grade, bad_grade.
    """
    for mark in sorted(record.marks, key=lambda m: not m.score):
        for meaning in meanings_of([mark]):
            if meaning.grade is None or meaning.mark.numbers:
                raise BadRecord(f"bad_grade: field {mark.field!r} is a class, no grade")
            return meaning.grade
    raise BadRecord("missing_grade: a set of task sts needs a score in every record")
