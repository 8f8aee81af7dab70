"""The report of a merge: one row per tensor, and their summary."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["MergeReport", "SlerpReport"]


@dataclass(frozen=True)
class SlerpReport:
    """How one tensor was merged.

    Attributes:
        name: of the tensor in the checkpoint.
        path: "slerp", "lerp", or "copy".
        reason: why it is not "slerp", else "".
        angle_degrees: the largest angle between two of the inputs; None where fewer than two have a norm above 0.
        coefficients: factor of each input; (1,) for a copy.
        excess: difference of SLERP from LERP, as sum of the coefficients - 1; 0 means the same result.
        numel: number of elements.
    """

    name: str
    path: str
    reason: str
    angle_degrees: float | None
    coefficients: tuple[float, ...]
    excess: float
    numel: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-ready dict."""
        return {**asdict(self), "coefficients": list(self.coefficients)}


@dataclass(frozen=True)
class MergeReport:
    """The inputs of a merge, the normalised weights, and one row per tensor of the output.

    Attributes:
        checkpoints: directories that were merged.
        weights: of the checkpoints, with sum 1.
        on: "weights" or "task_vectors".
        base: directory of the base; None for "weights".
        note: a remark on the merge, or "".
        rows: one for each tensor.
    """

    checkpoints: tuple[str, ...]
    weights: tuple[float, ...]
    on: str
    base: str | None
    note: str
    rows: tuple[SlerpReport, ...]

    def summary(self) -> dict[str, Any]:
        """Return counts of tensors and elements, tensors by path and by reason, and angles in degrees.

        `max_excess` is the largest |sum of coefficients - 1|: 0 means that SLERP was LERP everywhere.
        """
        angles = [(row.angle_degrees, row.name) for row in self.rows if row.angle_degrees is not None]
        widest = max(angles, default=(None, None))
        paths = [row.path for row in self.rows]
        reasons = [row.reason for row in self.rows if row.reason]
        return {
            "tensors": len(self.rows),
            "elements": sum(row.numel for row in self.rows),
            "paths": {path: paths.count(path) for path in ("slerp", "lerp", "copy")},
            "reasons": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
            "mean_angle_degrees": sum(angle for angle, _ in angles) / len(angles) if angles else None,
            "max_angle_degrees": widest[0],
            "max_angle_tensor": widest[1],
            "max_excess": max((abs(row.excess) for row in self.rows), default=0.0),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything, with the summary, as a JSON-ready dict."""
        return {
            "checkpoints": list(self.checkpoints),
            "weights": list(self.weights),
            "on": self.on,
            "base": self.base,
            "note": self.note,
            "summary": self.summary(),
            "rows": [row.to_dict() for row in self.rows],
        }
