"""Reranker scores against the whole string through the plain model, and its classifier export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from qwen3emb.model.contract import Contract
from qwen3emb.model.export import export_reranker, export_sequence_classifier
from qwen3emb.model.reranker import Reranker
from qwen3emb.templates import RerankTemplate

QUERY = "how do I read a file?"
DOCUMENTS = ["def read(path): return open(path).read()", "yes", "The query and the document are texts; " * 5]


def whole_string_scores(folder: Path) -> np.ndarray:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    yes, no = (tokenizer.encode(w)[0] for w in ("yes", "no"))
    out = []
    for document in DOCUMENTS:
        ids = tokenizer.encode(RerankTemplate.text(QUERY, document, "find it"))
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        pair = torch.softmax(logits[[yes, no]], dim=0)
        out.append(float(pair[0]))
    return np.array(out)


def test_scores_equal_the_plain_model_on_the_whole_string(tiny_qwen3: Path) -> None:
    ours = Reranker(tiny_qwen3, dtype="float32").score(QUERY, DOCUMENTS, max_tokens=900, instruction="find it")
    np.testing.assert_allclose(ours, whole_string_scores(tiny_qwen3), atol=1e-4)
    assert ours.std() > 1e-3  # the random model does tell the documents apart


def test_the_sequence_classifier_gives_the_same_scores(tiny_qwen3: Path, tmp_path: Path) -> None:
    reranker = Reranker(tiny_qwen3, dtype="float32")
    contract = Contract("reranker", "find it", "", 1024)
    model, causal, classifier = reranker.model, tmp_path / "causal", tmp_path / "classifier"
    export_reranker(causal, model.state_dict(), model.config, reranker.template.tokenizer, contract)
    export_sequence_classifier(causal, classifier)
    expected = whole_string_scores(tiny_qwen3)
    again = Reranker(causal, dtype="float32").score(QUERY, DOCUMENTS, max_tokens=900)
    np.testing.assert_allclose(again, expected, atol=1e-4)
    head = AutoModelForSequenceClassification.from_pretrained(classifier)
    assert head.config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    for document, score in zip(DOCUMENTS, expected, strict=True):
        ids = tokenizer.encode(RerankTemplate.text(QUERY, document, "find it"))
        logit = head(input_ids=torch.tensor([ids])).logits[0, 0]
        assert abs(float(torch.sigmoid(logit)) - score) < 1e-4
