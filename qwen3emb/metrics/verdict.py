"""The verdict of an evaluation in one line: is a model better than a baseline, by more than the queries' noise?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from qwen3emb.metrics.bootstrap import paired_bootstrap

__all__ = ["Least", "Verdict", "Word", "compare", "reaches"]

Word = Literal["WIN", "EVEN", "WORSE"]
Least = Literal["even", "win"]
"""What `--at-least` may ask for."""


@dataclass(frozen=True)
class Verdict:
    """A model against a baseline.

    Attributes:
        metric: of which the means are compared, e.g. `ndcg@10`.
        model, baseline: their names.
        difference: mean over the queries of the model's figure minus the baseline's.
        low, high: ends of the difference's 95 % interval (paired bootstrap over the queries).
        queries: that both have figures for.
    """

    metric: str
    model: str
    baseline: str
    difference: float
    low: float
    high: float
    queries: int

    @property
    def word(self) -> Word:
        """WIN or WORSE where the whole interval is on one side of zero, else EVEN."""
        return "WIN" if self.low > 0 else "WORSE" if self.high < 0 else "EVEN"

    def line(self) -> str:
        """`VERDICT: WORD  METRIC  MODEL  BASELINE  DIFFERENCE [LOW, HIGH]`."""
        interval = f"[{self.low:+.4f}, {self.high:+.4f}]"
        parts = (self.word, self.metric, self.model, self.baseline, f"{self.difference:+.4f} {interval}")
        return f"VERDICT: {'  '.join(parts)}"

    def as_json(self) -> dict[str, Any]:
        """The fields, the word and the line."""
        return {"verdict": self.word, "line": self.line()} | {
            name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(self).items()
        }


def compare(metric: str, model: str, baseline: str, figures: Mapping[str, Mapping[str, float]]) -> Verdict | None:
    """The verdict of `model` over `baseline`; None where they have no query in common.

    Args:
        metric: its name.
        model, baseline: keys of `figures`.
        figures: model -> query -> figure.
    """
    gain = paired_bootstrap(figures[model], figures[baseline])
    return None if gain is None else Verdict(metric, model, baseline, gain.mean, gain.low, gain.high, gain.queries)


def reaches(word: str, least: Least) -> bool:
    """Whether a verdict's word is `least` or better."""
    return word in {"even": ("EVEN", "WIN"), "win": ("WIN",)}[least]
