"""Length and language of an item: what they are drawn from, and that a draw never changes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qwen3emb.core.draws import unit_draw
from qwen3emb.core.errors import UserError
from qwen3emb.synthesis.tasks.item import draw_requirement, weighted_languages, weighted_words


def test_a_draw_depends_on_seed_and_id_only() -> None:
    languages, words = weighted_languages({"English": 1, "de": 1}), weighted_words({"5-10": 1, "10-20": 1})
    drawn = [draw_requirement(7, f"id{n}", languages, words) for n in range(200)]
    turned = dict(reversed(languages.items()))
    assert drawn == [draw_requirement(7, f"id{n}", turned, words) for n in range(200)]
    assert drawn != [draw_requirement(8, f"id{n}", languages, words) for n in range(200)]
    code = "from qwen3emb.synthesis.tasks.item import unit_draw; print(unit_draw(7, 'id1', 'words'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(other.stdout) == unit_draw(7, "id1", "words")


def test_draws_follow_the_weights() -> None:
    languages, words = (
        weighted_languages({"English": 3, "zh-Hans": 1}),
        {"5-10": 0.5, "10-20": 0.5, "20-40": 0},
    )
    drawn = [draw_requirement(0, f"id{n}", languages, words) for n in range(4000)]
    english = sum(d.language == "en" for d in drawn) / 4000
    assert abs(english - 0.75) < 0.03
    assert {d.words for d in drawn} == {"5-10", "10-20"}
    both = sum(d.language == "en" and d.words == "5-10" for d in drawn) / 4000
    assert abs(both - 0.375) < 0.03  # length and language are drawn independently
    assert {(d.language, d.language_name) for d in drawn} == {
        ("en", "English"),
        ("zh-Hans", "Chinese (Hans)"),
    }


def test_language_names_and_codes_are_the_same_language() -> None:
    assert weighted_languages({"German": 1, "de": 2}) == {"de": 3}


@pytest.mark.parametrize(
    ("languages", "message"),
    [
        ({"Englsh": 1}, "English"),
        ({}, "languages"),
        ({"en": 0}, "above 0"),
        ({"en": -1, "de": 2}, "at least 0"),
    ],
)
def test_languages_that_cannot_be_drawn_are_the_users_mistake(languages, message) -> None:
    with pytest.raises(UserError, match=message):
        weighted_languages(languages)


@pytest.mark.parametrize("words", [{"5": 1}, {"10-5": 1}, {"0-5": 1}, {"five-ten": 1}, {"5-10": float("nan")}, {}])
def test_lengths_that_are_no_range_are_the_users_mistake(words) -> None:
    with pytest.raises(UserError, match=r"synthesize\.words"):
        weighted_words(words)
