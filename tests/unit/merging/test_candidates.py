"""Which merges are compared."""

from __future__ import annotations

from typing import Any

from qwen3emb.config.merging import MergeConfig
from qwen3emb.merging.candidates import Candidate, configured_weights, merges, runs, singles, weighted

RUN = ["step_1", "step_2", "step_3"]


def named(**settings: Any) -> dict[str, Candidate]:
    further = settings.pop("further", ())
    run = settings.pop("run", RUN)
    found = merges(MergeConfig(keep="best", last=len(run), **settings), run, further)
    assert len({candidate.name for candidate in found}) == len(found)
    return {candidate.name: candidate for candidate in found}


def test_every_method_merges_all_and_slerp_the_last_two_as_well() -> None:
    found = named()
    assert list(found) == ["karcher last 3", "slerp last 2", "cocktail last 3", "self_position last 3"]
    assert found["karcher last 3"] == Candidate("karcher last 3", tuple(RUN))
    assert found["slerp last 2"].checkpoints == ("step_2", "step_3")
    assert found["self_position last 3"].method == "self_position"


def test_further_models_are_merged_with_all_and_with_the_last() -> None:
    alone, found = named(), named(further=["distill"])
    assert list(found)[-len(alone) :] == list(alone)
    added = {name: found[name].checkpoints for name in list(found)[: -len(alone)]}
    everything = (*RUN, "distill")
    assert added == {
        "karcher last 3 + distill": everything,
        "slerp last 1 + distill": ("step_3", "distill"),
        "cocktail last 3 + distill": everything,
        "self_position last 3 + distill": everything,
    }


def test_the_configured_method_comes_first_and_others_can_be_left_out() -> None:
    assert list(named(method="cocktail")) == [
        "cocktail last 3",
        "karcher last 3",
        "slerp last 2",
        "self_position last 3",
    ]
    assert list(named(candidates=[], run=RUN[:2])) == ["slerp last 2"]


def test_configured_weights_are_those_of_slerp_and_a_further_model_weighs_their_mean() -> None:
    found = named(weights=[1.0, 2.0, 3.0], further=["distill"])
    assert {name: c.weights for name, c in found.items() if c.weights} == {
        "karcher last 3 + distill": (1.0, 2.0, 3.0, 2.0),
        "karcher last 3": (1.0, 2.0, 3.0),
    }
    assert configured_weights(MergeConfig(last=3, weights=[1.0, 2.0, 4.0]), 2, 1) == (2.0, 4.0, 3.0)
    assert configured_weights(MergeConfig(), 2, 1) is None


def test_of_one_checkpoint_there_is_no_merge_but_with_another_model() -> None:
    assert named(run=RUN[:1]) == {} and runs(RUN[:1]) == []
    assert named(run=RUN[:1], further=["distill"], candidates=[])["slerp last 1 + distill"].checkpoints == (
        "step_1",
        "distill",
    )


def test_the_search_tries_every_run_and_each_checkpoint_heavier_and_lighter() -> None:
    assert [c.name for c in singles(RUN)] == RUN
    assert [(c.name, c.checkpoints) for c in runs(RUN)] == [
        ("slerp last 2", ("step_2", "step_3")),
        ("karcher last 3", tuple(RUN)),
    ]
    assert {c.name: c.weights for c in weighted(runs(RUN)[0])} == {
        "slerp last 2, 2 x step_2": (2.0, 1.0),
        "slerp last 2, half step_2": (0.5, 1.0),
        "slerp last 2, 2 x step_3": (1.0, 2.0),
        "slerp last 2, half step_3": (1.0, 0.5),
    }
