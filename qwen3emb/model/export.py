"""Model directories that open elsewhere: sentence-transformers, vLLM, transformers 5 and 4.

Weight names stay those of the base directory (`model.layers...`), so that checkpoints, merges and bases compare.
The tokenizer of an embedding model appends the end token by itself, as the released models do. Legacy keys that
readers of transformers 4 need (`rope_theta`, `torch_dtype`, a tokenizer class they know) are written as well.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from qwen3emb.model.contract import Contract, write_contract
from qwen3emb.templates import RerankTemplate, query_prompt, token_id

__all__ = ["SEQUENCE_CLASSIFIER", "export_embedding", "export_reranker", "export_sequence_classifier"]

_WEIGHTS = "model.safetensors"
SEQUENCE_CLASSIFIER = "sequence_classifier"


def export_embedding(output: Path, state: dict[str, Tensor], config: Any, tokenizer: Any, contract: Contract) -> None:
    """Write an embedding model.

    Args:
        output: the directory; made where missing.
        state: the trunk's weights (names without `model.`).
        config: its transformers configuration.
        tokenizer: its tokenizer.
        contract: end token, instruction, lengths.
    """
    output.mkdir(parents=True, exist_ok=True)
    _save_weights(output, {f"model.{name}": tensor for name, tensor in state.items()})
    _save_config(output, config, state, {})
    _save_tokenizer(output, tokenizer, contract.end_token)
    _save_sentence_transformers(output, contract)
    write_contract(output, contract)


def export_reranker(output: Path, state: dict[str, Tensor], config: Any, tokenizer: Any, contract: Contract) -> None:
    """Write a reranker as causal LM, and below it as one-label sequence classifier.

    Args:
        output: the directory; made where missing.
        state: the causal LM's weights.
        config: its transformers configuration.
        tokenizer: its tokenizer.
        contract: instruction and lengths.
    """
    output.mkdir(parents=True, exist_ok=True)
    if config.tie_word_embeddings:
        state = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    _save_weights(output, state)
    _save_config(output, config, state, {})
    _save_tokenizer(output, tokenizer, None)
    template = RerankTemplate(tokenizer)
    text = template.text("{query}", "{document}", "{instruction}")
    write_contract(output, replace(contract, pooling="", template=text, yes_no=list(template.yes_no)))


def export_sequence_classifier(model_dir: Path, output: Path) -> None:
    """Write a reranker directory as a one-label sequence classifier whose head row is w_yes - w_no.

    Exact: sigmoid(logit_yes - logit_no) = sigmoid(h . (w_yes - w_no)).
    """
    from transformers import AutoConfig

    from qwen3emb.model.loading import load_causal, load_tokenizer

    model = load_causal(model_dir, "float32")
    tokenizer = load_tokenizer(model_dir)
    head = model.get_output_embeddings().weight
    row = head[token_id(tokenizer, "yes")] - head[token_id(tokenizer, "no")]
    stored = AutoConfig.from_pretrained(model_dir)
    state = {n: t.to(stored.dtype or torch.bfloat16) for n, t in model.state_dict().items() if n != "lm_head.weight"}
    state["score.weight"] = row[None].detach().to(stored.dtype or torch.bfloat16)
    output.mkdir(parents=True, exist_ok=True)
    _save_weights(output, state)
    name = stored.architectures[0].replace("ForCausalLM", "ForSequenceClassification")
    labels = {"architectures": [name], "num_labels": 1, "id2label": {"0": "yes"}, "label2id": {"yes": 0}}
    _save_config(output, stored, state, labels)
    _save_tokenizer(output, tokenizer, None)


def _save_weights(output: Path, state: dict[str, Tensor]) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, output / _WEIGHTS, metadata={"format": "pt"})


def _save_config(output: Path, config: Any, state: dict[str, Tensor], changes: dict[str, Any]) -> None:
    """config.json with the keys of transformers 5 and 4 side by side."""
    content = json.loads(config.to_json_string(use_diff=False))
    rope = content.get("rope_parameters") or {}
    if "rope_theta" in rope:
        content["rope_theta"] = rope["rope_theta"]
        scaled = {key: value for key, value in rope.items() if key != "rope_theta"}
        content["rope_scaling"] = scaled if rope.get("rope_type", "default") != "default" else None
    content["dtype"] = content["torch_dtype"] = str(next(iter(state.values())).dtype).removeprefix("torch.")
    architectures = content.get("architectures") or []
    content["architectures"] = [_causal_name(a) for a in architectures]
    content.pop("_name_or_path", None)
    content.pop("_attn_implementation", None)
    if "num_labels" not in changes:
        for key in ("id2label", "label2id", "problem_type"):
            content.pop(key, None)
    content.update(changes)
    (output / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _causal_name(architecture: str) -> str:
    return architecture.removesuffix("Model") + "ForCausalLM" if architecture.endswith("Model") else architecture


def _save_tokenizer(output: Path, tokenizer: Any, end_token: str | None) -> None:
    """The tokenizer, appending `end_token` to every single text where one is given."""
    tokenizer.save_pretrained(output)
    settings_file = output / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    if settings.get("tokenizer_class") in (None, "TokenizersBackend"):
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):  # under this name transformers 4 wants a map, and fails
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    for key in ("backend", "is_local", "local_files_only"):
        settings.pop(key, None)
    settings_file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if end_token is None:
        return
    model_file = output / "tokenizer.json"
    model = json.loads(model_file.read_text(encoding="utf-8"))
    model["post_processor"] = _appending(end_token, token_id(tokenizer, end_token))
    model_file.write_text(json.dumps(model, ensure_ascii=False), encoding="utf-8")


def _appending(token: str, number: int) -> dict[str, Any]:
    """tokenizers' TemplateProcessing that adds one token after a text."""
    text = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 0}}
    end = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [text, end],
        "pair": [text, second, end],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def _save_sentence_transformers(output: Path, contract: Contract) -> None:
    """modules.json and what it names: last-token pooling, normalisation, prompts."""
    kind = "sentence_transformers.models."
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": kind + "Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": kind + "Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": kind + "Normalize"},
    ]
    pooling = {
        "word_embedding_dimension": contract.dimensions,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": True,
        "include_prompt": True,
    }
    library = {
        "prompts": {"query": query_prompt(contract.instruction), "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    (output / "1_Pooling").mkdir(exist_ok=True)
    (output / "2_Normalize").mkdir(exist_ok=True)
    for name, content in (
        ("modules.json", modules),
        ("1_Pooling/config.json", pooling),
        ("2_Normalize/config.json", {}),
        ("config_sentence_transformers.json", library),
        ("sentence_bert_config.json", {"max_seq_length": contract.max_tokens, "do_lower_case": False}),
    ):
        (output / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
