"""Retrieval: the chats of both calls, their schemas, and which answers are refused."""

import json
import re

import jsonschema
import pytest

from qwen3emb.core.errors import UserError
from qwen3emb.synthesis.chat import longest_text
from qwen3emb.synthesis.tasks.item import Requirement
from qwen3emb.synthesis.tasks.retrieval import Query, parse_configuration, parse_query
from qwen3emb.synthesis.tasks.retrieval_prompts import (
    DIFFICULTIES,
    EXAMPLE_QUERY,
    QUESTION_TYPES,
    Configuration,
    configuration_chat,
    configuration_schema,
    query_chat,
    query_schema,
)

PASSAGE = (
    "Return the directory name of a path. Trailing slashes are dropped first, then everything after the last "
    "one that is left; the result of a bare file name is empty."
)
PERSONAS = ["a nurse in Peru", "a tram driver", "a shell script author", "a monk", "a chess coach"]
CHOSEN = Configuration(2, "yes_or_no", "phd")
WANTED = Requirement("10-20", "sw", "Swahili")


def answer(text: str) -> str:
    return json.dumps({"query": text})


def common_prefix(one: list[dict[str, str]], two: list[dict[str, str]]) -> int:
    pairs = list(zip(one, two, strict=True))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))


def test_the_configuration_prompt_explains_every_option_and_shows_three_examples() -> None:
    messages = configuration_chat("passage_last", PASSAGE, PERSONAS)
    system, *turns, last = messages
    for name, meaning in (*QUESTION_TYPES.items(), *DIFFICULTIES.items()):
        assert f"{name} = {meaning}" in system["content"]
    assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * 3, "user"]
    for question, reply in zip(turns[::2], turns[1::2], strict=True):
        personas = len(re.findall(r"^\d\. ", question["content"], re.MULTILINE))
        assert isinstance(parse_configuration(reply["content"], personas), Configuration)
    assert PASSAGE in last["content"]
    assert all(f"{n}. {persona}" in last["content"] for n, persona in enumerate(PERSONAS, 1))


def test_each_question_type_is_the_last_example_for_some_rows() -> None:
    last = [json.loads(configuration_chat("passage_last", PASSAGE, PERSONAS, n / 10)[-2]["content"]) for n in range(10)]
    assert {e["Question_Type"] for e in last} == set(QUESTION_TYPES)


def test_the_query_prompt_carries_person_passage_and_requirement_and_one_example() -> None:
    messages = query_chat("passage_last", PASSAGE, PERSONAS[2], CHOSEN, WANTED)
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert json.loads(messages[2]["content"]) == {"query": EXAMPLE_QUERY}
    for part in (PASSAGE, PERSONAS[2], "yes-or-no", "phd", DIFFICULTIES["phd"], "10-20 words", "Swahili"):
        assert part in messages[-1]["content"]


def test_all_that_is_fixed_comes_before_what_differs_between_rows() -> None:
    other = "Ein ganz anderer Text."
    assert (
        common_prefix(
            configuration_chat("passage_last", PASSAGE, PERSONAS),
            configuration_chat("passage_last", other, PERSONAS[:2]),
        )
        == 7
    )
    one = query_chat("passage_last", PASSAGE, PERSONAS[0], CHOSEN, WANTED)
    assert (
        common_prefix(one, query_chat("passage_last", other, PERSONAS[1], Configuration(0, "summary", "phd"), WANTED))
        == 3
    )


@pytest.mark.parametrize("count", [1, 5])
def test_the_configuration_schema_admits_exactly_the_listed_choices(count: int) -> None:
    schema = configuration_schema(count)
    good = {"Character": count, "Question_Type": "summary", "Difficulty": "phd"}
    jsonschema.validate(good, schema)
    bad = [
        {"Character": 0},
        {"Character": count + 1},
        {"Question_Type": "poem"},
        {"Difficulty": "easy"},
        {"x": 1},
    ]
    for change in bad:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(good | change, schema)
    for key in good:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({k: v for k, v in good.items() if k != key}, schema)


def test_the_query_schema_bounds_the_query() -> None:
    for text in ("", "x" * (longest_text("5-10") + 1)):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"query": text}, query_schema("5-10"))
    jsonschema.validate({"query": "x" * longest_text("5-10")}, query_schema("5-10"))


def test_a_configuration_is_read_as_an_index_from_zero() -> None:
    text = '{"Character": 3, "Question_Type": "yes_or_no", "Difficulty": "phd"}'
    assert parse_configuration(text, 5) == CHOSEN


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"Character": 3, "Question_Type": "yes', "invalid_json"),
        ("[3]", "invalid_json"),
        ('{"Character": 6, "Question_Type": "summary", "Difficulty": "phd"}', "bad_configuration"),
        ('{"Character": true, "Question_Type": "summary", "Difficulty": "phd"}', "bad_configuration"),
        ('{"Character": "3", "Question_Type": "summary", "Difficulty": "phd"}', "bad_configuration"),
        ('{"Character": 3, "Question_Type": "poem", "Difficulty": "phd"}', "bad_configuration"),
        ('{"Character": 3, "Question_Type": "summary"}', "bad_configuration"),
        ('{"Character": 3, "Question_Type": ["summary"], "Difficulty": "phd"}', "bad_configuration"),
        ('{"Character": 3, "Question_Type": "summary", "Difficulty": {}}', "bad_configuration"),
    ],
)
def test_a_bad_configuration_gives_its_reason(text: str, code: str) -> None:
    parsed = parse_configuration(text, 5)
    assert isinstance(parsed, str)
    assert parsed.startswith(f"{code}: ")


def test_a_good_query_is_kept_with_its_white_space_collapsed() -> None:
    parsed = parse_query(answer(" how do I get  the folder\nof a path? "), PASSAGE, PERSONAS[2], "5-10")
    assert parsed == Query("how do I get the folder of a path?")
    for text in (
        "dirname trailing slashes",
        "路径的目录名是什么",
        "What does a shell do with trailing slashes?",
    ):
        assert parse_query(answer(text), PASSAGE, PERSONAS[2], "5-10") == Query(text)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"query": "how do I ', "invalid_json"),
        ('"how do I"', "invalid_json"),
        ('{"query": null}', "empty_query"),
        ('{"question": "how do I"}', "empty_query"),
        (answer("  \n"), "empty_query"),
        (answer("?!..."), "empty_query"),
        (answer("path " * 24), "too_long"),
        (answer("What does this passage say about slashes?"), "names_passage"),
        (answer(EXAMPLE_QUERY), "copied_prompt"),
        (answer("how do you keep a number between the lower and upper limit"), "copied_prompt"),
        (answer("follow type length language and difficulty"), "copied_prompt"),
        (answer("A shell script author"), "copied_prompt"),
        (answer("a shell script author who likes paths"), "copied_prompt"),
        (
            answer("Return the directory name of a path; trailing slashes are dropped first, then everything"),
            "copied_passage",
        ),
    ],
)
def test_a_bad_query_gives_its_reason(text: str, code: str) -> None:
    parsed = parse_query(text, PASSAGE, "a shell script author", "5-10")
    assert isinstance(parsed, str)
    assert parsed.startswith(f"{code}: ")


def test_the_prompts_stay_short_in_a_real_tokenizer() -> None:
    """Small models read them slowly: a few hundred tokens each, without passage and people."""
    transformers = pytest.importorskip("transformers")
    from qwen3emb.model.fetch import resolve_model

    try:
        folder = resolve_model("smollm2-135m-instruct")
    except UserError as error:
        pytest.skip(f"no tokenizer to count with: {error}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def count(messages: list[dict[str, str]]) -> int:
        return len(tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False)))

    assert max(count(configuration_chat("passage_last", "", [], n / 5)) for n in range(5)) <= 450
    assert count(query_chat("passage_last", "", PERSONAS[0], CHOSEN, WANTED)) <= 300


def test_passage_first_gives_both_calls_and_all_queries_one_beginning() -> None:
    chats = [
        configuration_chat("passage_first", PASSAGE, ["a sailor", "a nurse"], 0.7),
        query_chat(
            "passage_first",
            PASSAGE,
            "a nurse",
            Configuration(1, "keywords", "phd"),
            Requirement("5-10", "en", "English"),
        ),
        query_chat(
            "passage_first",
            PASSAGE,
            "a sailor",
            Configuration(0, "summary", "phd"),
            Requirement("10-20", "de", "German"),
        ),
    ]
    assert chats[0][:3] == chats[1][:3] == chats[2][:3] and PASSAGE in chats[0][1]["content"]
    assert len({chat[3]["content"] for chat in chats}) == 3
