"""FlagEmbedding's decoder-only embedder, driven by `benchmarks.train` from its own environment.

One JSON object per line in (`queries`, `passages`: texts with their end token; or `model`, `dtype` to load one), one
per line out: `loss` and `seconds` of one optimizer step, tokenisation included, as its trainer takes it.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from typing import Any


def load(order: dict[str, Any]) -> tuple[Any, Any, Any, bool]:
    """(model, tokenizer, optimizer, autocast)."""
    import torch
    from FlagEmbedding.finetune.embedder.decoder_only.base.modeling import BiDecoderOnlyEmbedderModel
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(order["threads"])
    tokenizer = AutoTokenizer.from_pretrained(order["model"], padding_side="left")
    autocast = order["dtype"] == "autocast"
    base = AutoModel.from_pretrained(order["model"], dtype=torch.float32 if autocast else torch.bfloat16)
    base.config.use_cache = False
    model = BiDecoderOnlyEmbedderModel(
        base,
        tokenizer=tokenizer,
        temperature=order["temperature"],
        sub_batch_size=order["sub_batch"],
        sentence_pooling_method="last_token",
        normalize_embeddings=True,
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=order["lr"], betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    return model, tokenizer, optimizer, autocast


def step(model: Any, tokenizer: Any, optimizer: Any, autocast: bool, order: dict[str, Any]) -> float:
    """One optimizer step; its loss."""
    import torch

    queries, passages = (
        dict(tokenizer(order[side], add_special_tokens=False, padding=True, return_tensors="pt"))
        for side in ("queries", "passages")
    )
    for side in (queries, passages):
        side.pop("token_type_ids", None)
    with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext():
        loss = model(queries=queries, passages=passages).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def main() -> None:
    """Answer orders until standard input ends."""
    loaded: tuple[Any, Any, Any, bool] | None = None
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        order = json.loads(line)
        if "model" in order:
            loaded = load(order)
            answer = {"ready": True}
        else:
            assert loaded is not None, "a model comes first"
            began = time.perf_counter()
            loss = step(*loaded, order)
            answer = {"loss": loss, "seconds": time.perf_counter() - began}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
