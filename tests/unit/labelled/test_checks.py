"""Rows that must not be trained on, where there is much, little or nothing to compare them with."""

from __future__ import annotations

import numpy as np
import pytest

from qwen3emb.config.labelled import LabelledConfig
from qwen3emb.core.rejects import Reject
from qwen3emb.labelled.checks import decontaminated, evaluation_of, without_duplicates
from qwen3emb.labelled.rows import LabelledRow
from qwen3emb.text.near_duplicates import minhash, minhashes

ASKED = "how do bees find their way home over many kilometres of open fields"
ROWS = [LabelledRow("s/1", ASKED, "by the sun"), LabelledRow("s/2", "who swims", "a fish swims")]


@pytest.mark.parametrize(("texts", "kept"), [({}, ["s/1", "s/2"]), ({"heldout query q": ASKED}, ["s/2"])])
def test_rows_like_what_is_evaluated_on_are_rejects_and_none_are_where_nothing_is(
    texts: dict[str, str], kept: list[str]
) -> None:
    rejects: list[Reject] = []
    rows = decontaminated(ROWS, evaluation_of(texts, LabelledConfig()), rejects)
    assert [row.id for row in rows] == kept
    assert [reject.id for reject in rejects] == [row.id for row in ROWS if row.id not in kept]
    assert decontaminated([], evaluation_of(texts, LabelledConfig()), rejects) == []


def test_signatures_of_no_texts_have_the_places_of_others() -> None:
    assert minhashes([]).shape == (0, len(minhash("a")))
    assert np.array_equal(minhashes(["a", "b c"]), np.stack([minhash("a"), minhash("b c")]))


def test_the_first_of_repeated_rows_stays() -> None:
    rejects: list[Reject] = []
    again = LabelledRow("s/3", "who  swims", "a fish swims ")
    assert without_duplicates([*ROWS, again], rejects) == ROWS and without_duplicates([], rejects) == []
    assert [(r.id, r.reason) for r in rejects] == [("s/3", "duplicate: of s/2")]
