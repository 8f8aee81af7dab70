"""Which stages of a run are to be run: from one on, up to one, or one alone."""

from __future__ import annotations

from qwen3emb.core.artifact import State
from qwen3emb.core.errors import UserError
from qwen3emb.pipeline.stages import Stage

__all__ = ["selected"]


def selected(
    steps: list[tuple[Stage, State]], first: str | None = None, only: str | None = None, last: str | None = None
) -> list[tuple[Stage, State]]:
    """The steps from stage `first` up to `last`, both included, or `only` one.

    Args:
        steps: all stages of the run with their states.
        first: None = the first stage of the run.
        only: a stage, instead of `first` and `last`.
        last: None = the last stage of the run.

    Raises:
        UserError: the run has no such stage, or a chosen stage reads one that is neither done nor chosen.
    """
    names = [stage.name for stage, _ in steps]
    absent = next((name for name in (first, only, last) if name and name not in names), None)
    if absent:
        raise UserError(f"this run has no stage {absent}; its stages are {', '.join(names)}")
    begin, end = names.index(only or first or names[0]), names.index(only or last or names[-1])
    chosen = steps[begin : end + 1]
    available = {stage.name for stage, state in steps if state == "done"} | {stage.name for stage, _ in chosen}
    for stage, _ in chosen:
        missing = [need for need in stage.needs if need in names and need not in available]
        if missing:
            raise UserError(
                f"stage {stage.name} reads {missing[0]}, which is not done for this config; "
                f"run with --from {missing[0]}, or without --from and --only"
            )
    return chosen
