"""The card says what the records say: contract, data with licences, figures with their commands."""

from __future__ import annotations

import yaml

from qwen3emb.export.model_card import CardFacts, model_card
from qwen3emb.model.contract import Contract

EVALUATED = {
    "dataset": "heldout",
    "queries": 40,
    "documents": 520,
    "models": {"base": {"ndcg@10": 0.007, "mrr@10": 0.003}, "merged": {"ndcg@10": 0.504, "mrr@10": 0.449}},
}


def test_an_embedding_models_card() -> None:
    contract = Contract("embedding", "Find the function", "<|im_end|>", 512, 576, [128, 256])
    facts = CardFacts(
        "demo-embedding",
        "smollm2",
        "qwen3-32b",
        {"synthetic": 1200, "nq": 7},
        {"nq": "CC BY-SA 3.0"},
        2,
        EVALUATED,
        {"SciFact": 64.508},
        "demo.yaml",
    )
    card = model_card(contract, facts)
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "sentence-transformers" and front["pipeline_tag"] == "feature-extraction"
    assert r"| query | `Instruct: Find the function\nQuery:` before the text" in card
    assert "| dimensions | 576, may be cut to 128, 256 and normalised again |" in card
    assert "| nq | 7 | CC BY-SA 3.0 |\n| synthetic | 1,200 | not stated |" in card
    assert "those of 2 checkpoints, merged by SLERP." in card
    assert "| merged | 0.5040 | 0.4490 |" in card
    assert "`python -m jobs.evaluate --config demo.yaml`" in card
    assert 'SentenceTransformer("FOLDER", truncate_dim=128)' in card
    assert "| SciFact | 64.51 |" in card and "--task SciFact" in card


def test_what_no_record_says_is_not_claimed() -> None:
    card = model_card(
        Contract("reranker", "Judge", "", 512, template="<Query>: {query}\n", yes_no=[7, 8]),
        CardFacts("r", "base", "writer", {"synthetic": 1}),
    )
    assert "Evaluation" not in card and "dimensions" not in card
    assert "The weights are those of one checkpoint." in card
    assert yaml.safe_load(card.split("---")[1])["pipeline_tag"] == "text-ranking"
    assert (
        'CrossEncoder("FOLDER/sequence_classifier")' in card
        and "--chat-template FOLDER/sequence_classifier/chat_template.jinja" in card
    )
    assert "ids [7, 8]" in card and r"| input | `<Query>: {query}\n` |" in card


def test_a_card_says_which_figures_are_of_written_queries() -> None:
    further = {"set": "synthetic", "synthetic_queries": True, "models": {"merged": {"ndcg@10": 0.25}}}
    further |= {"dataset": "heldout", "queries": 30, "documents": 90}
    contract = Contract("embedding", "Find", "<|im_end|>", 512, 576, [])
    card = model_card(
        contract, CardFacts("e", "base", "writer", {"nq": 1}, evaluated=EVALUATED | {"sets": {"s": further}})
    )
    first, second = card.split("## Evaluation")[1].split("Retrieval, ")[1:]
    assert first.startswith("40 queries over 520 documents (`heldout`)")
    assert second.startswith("30 synthetic queries, written by the generator, over 90 documents (`heldout, synthetic`)")
    assert "| merged | 0.2500 |" in second
    nothing = CardFacts("e", "base", "writer", {"nq": 1}, evaluated={"models": {}, "note": "nothing to judge on"})
    assert "## Evaluation" not in model_card(contract, nothing)
