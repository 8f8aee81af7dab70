"""Queries of each type as people write them pass, the same questions under another type do not."""

from __future__ import annotations

import pytest

from qwen3emb.synthesis.question_type import wrong_type
from qwen3emb.synthesis.tasks.retrieval_prompts import EXAMPLE_QUERY, QUESTION_TYPES

KEYWORDS = [
    "clamp number range python",
    "where clause subquery postgres",
    "which command linux",
    "who command output columns",
    "what-if analysis excel",
    "can bus bit timing",
    "will and testament template",
    "do while loop bash",
    "is_dir pathlib symlink",
    "numpy.linalg.norm axis",
    "Ferry Dover Calais last boat 22:15",
    "steps to renew a passport in Spain",
    "explain plan nested loop",
    "gcc flags -O2 -march etc.",
    "C++ move semantics std::forward",
    "why nations fail summary",
    "let it be chords",
]
YES_OR_NO = [
    "Can a number be kept within a range?",
    "is there a ferry after 22:00",
    "Isn't concrete weaker when it sets slowly?",
    "If concrete sets at 3 degrees, does it need a cover?",
    "In Python, can I clip a value without numpy?",
    "When a list is empty, will max raise an error?",
    "You can take dogs on the ferry for free?",
    "So do lichens make sugar?",
    "Bicycles are free, aren't they?",
    "Possible to clip a value below zero",
    "tell me if bicycles are free",
    "whether dogs travel free on the last boat",
    "Don’t lichens need a fungus?",
    "“May I take a bicycle?”",
    "Are the tickets for adults or for children cheaper?",
    "Was the flood of 2002 in Dresden higher than 9 metres?",
]
ASKING = [
    EXAMPLE_QUERY,
    "What is the last boat of the evening?",
    "what's the price of a ticket",
    "Why does rye dough tear",
    "In which year did the Elbe reach 9.40 metres?",
    "At what temperature does concrete set?",
    "Please, how much is a ferry ticket?",
    "In Python, how do I clip a value?",
    "Which alga lives in a lichen?",
    "Who builds bridges over the Elbe?",
    "What makes a lichen grow?",
    "How to cover concrete for three days",
    "How are lichens formed, and why?",
]


@pytest.mark.parametrize("query", KEYWORDS)
def test_keywords_pass_as_keywords_only(query: str) -> None:
    assert wrong_type(query, "keywords", "en") is None
    assert wrong_type(f"{query}?", "keywords", "en") is not None


@pytest.mark.parametrize("query", YES_OR_NO)
def test_yes_or_no_questions_pass_as_such(query: str) -> None:
    assert wrong_type(query, "yes_or_no", "en") is None


@pytest.mark.parametrize("query", [q for q in YES_OR_NO if "?" in q or q.startswith("is there")])
def test_yes_or_no_questions_are_no_keywords(query: str) -> None:
    assert wrong_type(query, "keywords", "en") is not None


@pytest.mark.parametrize("query", ASKING)
def test_what_asks_for_more_than_yes_is_neither_keywords_nor_yes_or_no(query: str) -> None:
    assert wrong_type(query, "acquire_knowledge", "en") is None
    assert wrong_type(query, "yes_or_no", "en") is not None
    assert wrong_type(query, "keywords", "en") is not None


@pytest.mark.parametrize(
    "sentence",
    [
        "Concrete below five degrees must be covered.",
        "I want to know when the last boat leaves",
        "Tell me about lichens and their sugar",
        "How do I clip a value",
    ],
)
def test_sentences_are_no_keywords(sentence: str) -> None:
    assert wrong_type(sentence, "keywords", "en") is not None


def test_keywords_ask_nothing() -> None:
    assert wrong_type("clamp number range python", "acquire_knowledge", "en") is not None
    assert wrong_type("concrete curing time", "yes_or_no", "en") is not None
    for request in (
        "Explain lichens",
        "the difference between alga and fungus",
        "Dogs are free on the ferry?",
        "I need a ferry",
    ):
        assert wrong_type(request, "acquire_knowledge", "en") is None


@pytest.mark.parametrize(
    ("query", "question_type", "language", "passes"),
    [
        ("Wie lange muss Beton abgedeckt werden?", "keywords", "de", False),
        ("Beton abdecken Temperatur Dauer", "keywords", "de", True),
        ("Beton DIN 1045 Abdeckung usw.", "keywords", "de", True),
        ("Wie lange muss Beton abgedeckt werden?", "yes_or_no", "de", False),
        ("Muss Beton abgedeckt werden?", "yes_or_no", "de", True),
        ("Wenn Beton langsam abbindet, wird er fest", "yes_or_no", "de", True),
        ("Pourquoi le béton doit-il être couvert ?", "yes_or_no", "fr", False),
        ("Quelle est la dernière heure du bateau ?", "yes_or_no", "fr", False),
        ("Est-ce que les chiens sont gratuits ?", "yes_or_no", "fr", True),
        ("Quand il gèle, faut-il couvrir le béton ?", "yes_or_no", "fr", True),
        ("¿Cómo se cubre el hormigón?", "yes_or_no", "es", False),
        ("¿Como perro viajo gratis?", "yes_or_no", "es", True),
        ("如何覆盖混凝土？", "yes_or_no", "zh-Hans", False),
        ("多少度以下不能浇筑？", "yes_or_no", "zh-Hans", False),
        ("如何覆盖重要吗？", "yes_or_no", "zh-Hans", True),
        ("混凝土需要覆盖吗？", "keywords", "zh-Hans", False),
        ("混凝土 覆盖 温度", "keywords", "zh-Hans", True),
        ("コンクリートを覆います。", "keywords", "ja", False),
        (
            "لماذا يغطى الخرسانة؟",
            "keywords",
            "ar",
            False,
        ),
        ("Hvorfor skal beton dækkes til?", "yes_or_no", "da", True),
    ],
)
def test_elsewhere_only_what_is_certain_counts(query: str, question_type: str, language: str, passes: bool) -> None:
    assert (wrong_type(query, question_type, language) is None) == passes


def test_other_types_have_no_form() -> None:
    for question_type in QUESTION_TYPES.keys() - {"keywords", "yes_or_no", "acquire_knowledge"}:
        for query in (*KEYWORDS, *YES_OR_NO, *ASKING, "", "?", "..."):
            assert wrong_type(query, question_type, "en") is None
    for question_type in QUESTION_TYPES:
        for query in ("", "?", "...", "。"):
            wrong_type(query, question_type, "en")
            wrong_type(query, question_type, "zh")
