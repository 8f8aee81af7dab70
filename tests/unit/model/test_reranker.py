"""Reranker scores against the whole string through the plain model, and its classifier export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from qwen3emb.core.errors import UserError
from qwen3emb.export.export import export_reranker, export_sequence_classifier
from qwen3emb.model.contract import CONTRACT_FILE, Contract
from qwen3emb.model.loading import load_causal, load_tokenizer
from qwen3emb.model.reranker import Reranker
from qwen3emb.text.templates import RerankTemplate

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
    logits = Reranker(tiny_qwen3, dtype="float32").score(
        QUERY, DOCUMENTS, max_tokens=900, instruction="find it", logits=True
    )
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), ours, atol=1e-6)


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


def test_the_contract_holds_template_and_answers_and_another_one_is_refused(tiny_qwen3: Path, tmp_path: Path) -> None:
    model, tokenizer = load_causal(tiny_qwen3, "float32"), load_tokenizer(tiny_qwen3)
    export_reranker(tmp_path, model.state_dict(), model.config, tokenizer, Contract("reranker", "find it", "", 1024))
    file = tmp_path / CONTRACT_FILE
    content = json.loads(file.read_text())
    shown = content["template"].format(query="q", document="d", instruction="i")
    assert shown == RerankTemplate.text("q", "d", "i")
    assert content["yes_no"] == [tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no")]
    for key, value in (("template", content["template"].replace("<Document>", "<Passage>")), ("yes_no", [1, 2])):
        file.write_text(json.dumps(content | {key: value}))
        with pytest.raises(UserError, match="another template or tokenizer"):
            Reranker(tmp_path)
    older = {k: v for k, v in content.items() if k not in ("template", "yes_no", "pooling")}
    file.write_text(json.dumps(older))  # of before these were written
    assert Reranker(tmp_path, dtype="float32").score(QUERY, DOCUMENTS, max_tokens=900).shape == (3,)


def test_a_classifier_of_shards_with_a_head_of_its_own_is_exact(tiny_qwen3: Path, tmp_path: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_qwen3)
    plain.config.tie_word_embeddings = False
    plain.lm_head.weight = torch.nn.Parameter(torch.randn(plain.lm_head.weight.shape, generator=torch.manual_seed(0)))
    plain.save_pretrained(tmp_path / "base", max_shard_size="100KB")
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen3)
    tokenizer.save_pretrained(tmp_path / "base")
    assert len(list((tmp_path / "base").glob("model-*.safetensors"))) > 1
    export_sequence_classifier(tmp_path / "base", tmp_path / "classifier")
    head, loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier", output_loading_info=True)
    assert not loaded["missing_keys"] and not loaded["unexpected_keys"]
    yes, no = (tokenizer.encode(w)[0] for w in ("yes", "no"))
    ids = torch.tensor([tokenizer.encode(RerankTemplate.text(QUERY, DOCUMENTS[0], "find it"))])
    with torch.inference_mode():
        logits, logit = plain(input_ids=ids).logits[0, -1], head(input_ids=ids).logits[0, 0]
    assert abs(float(logits[yes] - logits[no]) - float(logit)) < 1e-4
    with pytest.raises(UserError, match="sequence classifier; name the reranker directory above it"):
        Reranker(tmp_path / "classifier")


def test_a_reranker_without_its_head_is_no_classifier(tiny_qwen3: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_qwen3, tmp_path / "headless")  # its only matrix over the vocabulary is that of the embeddings
    config = tmp_path / "headless" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": False}))
    with pytest.raises(UserError, match=r"headless: no lm_head\.weight in its model"):
        export_sequence_classifier(tmp_path / "headless", tmp_path / "classifier")
