"""Which graded or labelled pairs are positives. Where that cannot be known the set is refused: it is never guessed."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen3emb.config_labelled import LabelledSetConfig
from qwen3emb.data.labelled_formats import Record
from qwen3emb.data.rows import BadRecord
from qwen3emb.errors import UserError

__all__ = ["Grades"]


@dataclass
class Grades:
    """The grades of one set so far.

    Attributes:
        name: of the set.
        cfg: its section.
        seen: the first record's grade, once there is one; only it may occur.
    """

    name: str
    cfg: LabelledSetConfig
    seen: list[float | None] = field(default_factory=list)

    def check(self, record: Record, file: str, row: int) -> None:
        """Let a record pass whose positives are positives.

        With `min_grade` those are from it on; entailment of NLI is one; ms-swift's label 1 is one.

        Raises:
            BadRecord: they are not; codes missing_grade, bad_grade, below_min_grade, no_positive.
            UserError: nobody can know: grades differ or are not above 0, and `min_grade` is not set.
        """
        grade = record.grade
        if self.cfg.task == "sts":
            _check_sts(record)
        elif self.cfg.min_grade is not None:
            if grade is None or grade < self.cfg.min_grade:
                raise BadRecord(f"below_min_grade: {grade}")
        elif record.relation:
            if record.relation != "entailment":
                raise BadRecord(f"no_positive: field {record.grade_field!r} says {record.relation}, not entailment")
        elif record.closed and grade == 0:
            raise BadRecord(f"no_positive: field {record.grade_field!r} is 0, so this is no answer of the query")
        elif record.closed and grade not in (1, None):
            raise self._refused(record, file, row)
        elif not record.closed:
            self._check_constant(record, file, row)

    def _check_constant(self, record: Record, file: str, row: int) -> None:
        self.seen = self.seen or [record.grade]
        if record.grade != self.seen[0] or not (record.grade is None or record.grade > 0):
            raise self._refused(record, file, row)

    def _refused(self, record: Record, file: str, row: int) -> UserError:
        first, grade = (self.seen or [record.grade])[0], record.grade
        here = "has no grade" if grade is None else f"has the grade {grade:g} in field {record.grade_field!r}"
        above = "" if grade == first else f", rows above have {'none' if first is None else format(first, 'g')}"
        return UserError(
            f"{file}, row {row}: it {here}{above}, and nothing says from which grade on a pair is a positive; set "
            f"labelled.sets.{self.name}.min_grade (data describe: --min-grade), or task: sts to learn the grades"
        )


def _check_sts(record: Record) -> None:
    if record.relation:
        raise BadRecord(f"bad_grade: field {record.grade_field!r} is a class ({record.relation}), no grade")
    if record.grade is None:
        raise BadRecord("missing_grade: a set of task sts needs a score in every record")
