from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qwen3emb.text.identity import content_hash, content_id, exact_hash


def test_content_hash_ignores_spacing_and_composition_only() -> None:
    assert content_hash("caf\u00e9  au\n lait ") == content_hash("cafe\u0301 au lait")
    assert content_hash("cafe au lait") != content_hash("caf\u00e9 au lait")
    assert content_hash("A") != content_hash("a")
    assert content_hash("a b") != content_hash("ab")
    assert content_hash("") == "cae66941d9efbd404e4d88758ea67670"  # blake2b-128 of nothing, frozen


def test_the_losses_know_a_text_by_the_same_identity_as_the_data_stages() -> None:
    composed, decomposed = "caf\u00e9 au lait", "cafe\u0301  au\tlait"
    assert content_hash(composed) == content_hash(decomposed)
    assert content_id(composed) == content_id(decomposed)


@given(st.text(), st.text())
def test_both_forms_agree_on_which_texts_are_the_same(first: str, second: str) -> None:
    assert (content_hash(first) == content_hash(second)) == (content_id(first) == content_id(second))


@given(st.text())
def test_an_identity_fits_an_int64_tensor(text: str) -> None:
    assert 0 <= content_id(text) < 2**62


def test_what_is_kept_of_a_text_is_of_that_spelling_alone() -> None:
    assert exact_hash("a b") != exact_hash("a  b")
    assert exact_hash("caf\u00e9") != exact_hash("cafe\u0301")
    assert exact_hash("\ud800") != exact_hash("\ud801")
    assert exact_hash("").hex() == "cae66941d9efbd404e4d88758ea67670"  # vectors on storage are found by it
