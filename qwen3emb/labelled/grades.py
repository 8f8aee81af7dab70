"""Which graded or labelled pairs are positives. Where that cannot be known the set is refused: it is never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qwen3emb.config.labelled import LabelledDatasetConfig
from qwen3emb.core.errors import UserError
from qwen3emb.core.rejects import BadRecord
from qwen3emb.labelled.formats import Record
from qwen3emb.labelled.marks import Mark, Said, said_by

__all__ = ["Grades"]


@dataclass
class Grades:
    """The grades of one set so far.

    Attributes:
        name: of the set.
        cfg: its section.
        seen: field -> grade of the first record whose grades nobody explains, once there is one; only these may occur.
        labelled: a record had a label whose meaning is known, so records without one are no positives.
    """

    name: str
    cfg: LabelledDatasetConfig
    seen: dict[str, float] | None = None
    labelled: bool = False
    fields: dict[str, None] = field(default_factory=dict)

    def check(self, record: Record, file: str, row: int) -> tuple[float | None, bool]:
        """(grade, whether a label says that it is a positive) of a record whose positives are positives.

        With `min_grade` those are from it on; entailment of NLI is one; ms-swift's label 1 is one. A record of which
        no label says so is a positive only where that holds for the whole set (`labelled`).

        Raises:
            BadRecord: they are not; codes missing_grade, bad_grade, below_min_grade, no_positive, missing_label.
            UserError: nobody can know: grades differ or are not above 0, and `min_grade` is not set.
        """
        if self.cfg.task == "sts":
            return _sts_grade(record), True
        said = list(said_by(self._counted(record)))
        grade = _first_grade(said)
        rest = self._not_compared(said) if self.cfg.min_grade is not None else said
        self.labelled = self.labelled or _explained(rest)
        for one in rest:
            if one.instead:
                raise BadRecord(f"no_positive: field {one.mark.field!r} says {one.instead}, so this is no positive")
        if self.cfg.min_grade is None and record.nli and not _explained(said) and self._has_label(record):
            self.labelled = True
            raise BadRecord("missing_label: the label of a pair of NLI is empty")
        self._check_unexplained(record, said, rest, file, row)
        return grade, _explained(said) or self.cfg.min_grade is not None

    def _has_label(self, record: Record) -> bool:
        """Whether the record has a label field, and nothing in it."""
        labels = [m for m in record.marks if self.cfg.columns.grade or not m.score]
        return bool(labels) and not any(said_by(labels))

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
        """The marks that say something of the pair: beside negatives of its own, scores are margins, or lists."""
        if not record.negatives:
            return record.marks
        asked = self.cfg.min_grade is not None or bool(self.cfg.columns.grade)
        return [m for m in record.marks if not isinstance(m.value, list) and (asked or not m.score)]

    def _not_compared(self, said: Sequence[Said]) -> list[Said]:
        """What `min_grade` is not compared with: labels beside scores, and words."""
        numbers = [s for s in said if s.grade is not None]
        compared = [s for s in numbers if s.mark.score] or numbers
        for one in compared:
            if one.grade is not None and self.cfg.min_grade is not None and one.grade < self.cfg.min_grade:
                raise BadRecord(f"below_min_grade: field {one.mark.field!r} is {one.grade:g}")
        rest = [s for s in said if s not in compared]
        if not compared and not _explained(rest):
            raise BadRecord("below_min_grade: it has no grade")
        return rest

    def _check_unexplained(
        self, record: Record, said: Sequence[Said], rest: Sequence[Said], file: str, row: int
    ) -> None:
        """Let grades pass that are the same in all records, and above 0."""
        grades = {s.mark.field: s.grade for s in rest if s.instead is None and s.grade is not None}
        if (said or record.closed) and not grades:
            return
        wrong = [s for s in rest if s.instead is None and s.mark.numbers]
        known = grades if self.seen is None else self.seen
        differ = [f for f in {**grades, **known} if grades.get(f) != known.get(f)]
        low = [f for f, grade in grades.items() if grade <= 0]
        self.seen = known
        for name in [*(s.mark.field for s in wrong), *low, *differ]:
            raise self._refused(name, grades.get(name), known.get(name), file, row)

    def _refused(self, name: str, grade: float | None, first: float | None, file: str, row: int) -> UserError:
        here = f"has no grade in field {name!r}" if grade is None else f"has the grade {grade:g} in field {name!r}"
        above = "" if grade == first else f", rows above have {'none' if first is None else format(first, 'g')}"
        return UserError(
            f"{file}, row {row}: it {here}{above}, and nothing says from which grade on a pair is a positive; set "
            f"labelled.sets.{self.name}.min_grade (data describe: --min-grade), or task: sts to learn the grades; "
            "columns.grade names the one field that counts"
        )


def _explained(said: Sequence[Said]) -> bool:
    """Whether a mark says by itself what the pair is."""
    return any(s.instead is not None for s in said)


def _first_grade(said: Sequence[Said]) -> float | None:
    """The grade that goes with a row: of a score before that of a label."""
    ordered = sorted(said, key=lambda s: not s.mark.score)
    return next((s.grade for s in ordered if s.grade is not None), None)


def _sts_grade(record: Record) -> float:
    """The first score, else the first label that is a grade."""
    for mark in sorted(record.marks, key=lambda m: not m.score):
        for one in said_by([mark]):
            if one.grade is None or one.mark.numbers:
                raise BadRecord(f"bad_grade: field {mark.field!r} is a class, no grade")
            return one.grade
    raise BadRecord("missing_grade: a set of task sts needs a score in every record")
