"""Write model directories that sentence-transformers, vLLM, transformers 5 and transformers 4 can open.

Weights keep the names of the base model (`model.layers...`), so that checkpoints, merges and bases can be compared.
The tokenizer of an embedding model appends the end token by itself, as the released models do; that of a reranker
carries its template as chat template. Legacy keys that readers of transformers 4 need (`rope_theta`, `rope_scaling`,
`torch_dtype`, a tokenizer class they know) are written as well.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from qwen3emb.core.errors import UserError
from qwen3emb.export.tokenizer_files import save_tokenizer
from qwen3emb.model.contract import Contract, read_contract, write_contract
from qwen3emb.text.templates import DEFAULT_RERANK_INSTRUCTION, RerankTemplate, query_prompt, score_template

__all__ = ["SEQUENCE_CLASSIFIER", "export_embedding", "export_reranker", "export_sequence_classifier"]

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_HEAD, _EMBEDDINGS, _SCORE = "lm_head.weight", "model.embed_tokens.weight", "score.weight"
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
    dims = sorted({*contract.mrl_dims, contract.dimensions}) if contract.mrl_dims else None
    # vLLM refuses `dimensions` that this key does not list
    _save_config(output, config, tokenizer, _dtype(state), {"matryoshka_dimensions": dims} if dims else {})
    save_tokenizer(output, tokenizer, end_token=contract.end_token, max_tokens=contract.max_tokens)
    _save_sentence_transformers(output, contract)
    prompts = {"query": query_prompt(contract.instruction), "document": ""}
    write_contract(output, replace(contract, prompts=prompts))


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
        state = {name: tensor for name, tensor in state.items() if name != _HEAD}
    _save_weights(output, state)
    _save_config(output, config, tokenizer, _dtype(state), {})
    _save_rerank_contract(output, tokenizer, contract)


def export_sequence_classifier(model_dir: Path, output: Path) -> None:
    """Write a reranker as a sequence classifier with one label, whose head is the row w_yes - w_no.

    Its score is that of the reranker: sigmoid(logit_yes - logit_no) = sigmoid(h . (w_yes - w_no)). One file of weights
    is in memory at a time.

    Args:
        model_dir: directory of the reranker.
        output: the directory to write; made where missing.

    Raises:
        UserError: no safetensors weights of a decoder, or "yes" / "no" is not one token.
    """
    from transformers import AutoConfig

    from qwen3emb.model.loading import load_tokenizer

    tokenizer, stored = load_tokenizer(model_dir), AutoConfig.from_pretrained(model_dir, trust_remote_code=False)
    files = sorted(model_dir.glob("model*.safetensors"))
    row = _direction(files, RerankTemplate(tokenizer).yes_no, bool(stored.tie_word_embeddings))
    output.mkdir(parents=True, exist_ok=True)
    places: dict[str, str] = {}
    for file in files:
        state = {name: tensor for name, tensor in load_file(file).items() if name != _HEAD}
        if file == files[-1]:
            state[_SCORE] = row
        _save_weights(output, state, file.name)
        places |= dict.fromkeys(state, file.name)
    if len(files) > 1:
        index = {"metadata": {}, "weight_map": places}
        (output / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    name = stored.architectures[0].replace("ForCausalLM", "ForSequenceClassification")
    labels = {"architectures": [name], "num_labels": 1, "id2label": {"0": "yes"}, "label2id": {"yes": 0}}
    _save_config(output, stored, tokenizer, row.dtype, labels)
    longest = int(stored.max_position_embeddings)
    contract = read_contract(model_dir) or Contract("reranker", DEFAULT_RERANK_INSTRUCTION, "", longest)
    _save_rerank_contract(output, tokenizer, contract)


def _direction(files: list[Path], yes_no: tuple[int, int], tied: bool) -> Tensor:
    """(1, hidden): the head's row of "yes" minus that of "no", rounded once to the stored dtype."""
    names = (_HEAD, _EMBEDDINGS) if tied else (_HEAD,)  # the embeddings are the head where the two are tied
    for name in names:
        for file in files:
            with safe_open(file, framework="pt") as opened:
                if name in opened.keys():  # noqa: SIM118, not a mapping
                    rows = opened.get_slice(name)
                    yes, no = (rows[i : i + 1] for i in yes_no)
                    difference: Tensor = (yes.float() - no.float()).to(yes.dtype)
                    return difference
    place = files[0].parent if files else "the reranker"
    raise UserError(f"{place}: no {' or '.join(names)} in its model*.safetensors; export the reranker again")


def _save_rerank_contract(output: Path, tokenizer: Any, contract: Contract) -> None:
    """Tokenizer with the score template, and the contract with the ids of "yes" and "no"."""
    form = RerankTemplate(tokenizer)
    text, yes_no = form.text("{query}", "{document}", "{instruction}"), list(form.yes_no)
    template = score_template(contract.instruction)
    save_tokenizer(output, tokenizer, max_tokens=contract.max_tokens, chat_template=template)
    write_contract(output, replace(contract, pooling="", normalised=False, template=text, yes_no=yes_no))


def _dtype(state: dict[str, Tensor]) -> torch.dtype:
    return next(iter(state.values())).dtype


def _save_weights(output: Path, state: dict[str, Tensor], file: str = _WEIGHTS) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    path = output / file
    path.touch()
    mode = path.stat().st_mode  # as the umask has it; safetensors would leave a file that nobody else may read
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)


def _save_config(output: Path, config: Any, tokenizer: Any, dtype: torch.dtype, changes: dict[str, Any]) -> None:
    """config.json with the keys of transformers 5 and 4 side by side."""
    content = json.loads(config.to_json_string(use_diff=False))
    rope = content.get("rope_parameters") or {}
    if "rope_theta" in rope:
        content["rope_theta"] = rope["rope_theta"]
        scaled = {key: value for key, value in rope.items() if key != "rope_theta"}
        content["rope_scaling"] = scaled if rope.get("rope_type", "default") != "default" else None
    content["dtype"] = content["torch_dtype"] = str(dtype).removeprefix("torch.")
    if content.get("pad_token_id") is None:  # a sequence classifier refuses batches without one
        content["pad_token_id"] = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    architectures = content.get("architectures") or []
    content["architectures"] = [_causal_name(a) for a in architectures]
    for key in ("_name_or_path", "_attn_implementation", "matryoshka_dimensions", "is_matryoshka"):
        content.pop(key, None)
    if "num_labels" not in changes:
        for key in ("id2label", "label2id", "problem_type"):
            content.pop(key, None)
    content.update(changes)
    (output / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _causal_name(architecture: str) -> str:
    return architecture.removesuffix("Model") + "ForCausalLM" if architecture.endswith("Model") else architecture


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
