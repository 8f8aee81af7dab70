"""What plain transformers, 4.57 or 5, makes of exported directories: run in a process of its own.

Standard input is JSON, job's name -> job: a directory, a dtype, and texts, or a query with documents. Everything else
comes from the directories, since that is what their readers have. The last line of the output is the answers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer


def vectors(folder: Path, job: dict[str, Any], contract: dict[str, Any]) -> list[list[float]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=job["dtype"])
    prompt = contract["prompts"][job["prompt"]]
    batch = tokenizer([prompt + text for text in job["texts"]], padding=True, truncation=True, return_tensors="pt")
    states = model(**batch).last_hidden_state
    last = (batch["attention_mask"] * torch.arange(states.shape[1])).argmax(dim=1)
    ends = states[torch.arange(len(last)), last].float()[:, : job.get("dimensions")]
    out: list[list[float]] = torch.nn.functional.normalize(ends, dim=-1).tolist()
    return out


def scores(folder: Path, job: dict[str, Any], contract: dict[str, Any]) -> list[float]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = [
        [{"role": "query", "content": job["query"]}, {"role": "document", "content": document}]
        for document in job["documents"]
    ]
    texts = tokenizer.apply_chat_template(pairs, tokenize=False)
    if job["form"] == "classifier":
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=job["dtype"])
        margins = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0]
        out: list[float] = torch.sigmoid(margins.float()).tolist()
        return out
    yes, no = contract["yes_no"]
    causal = AutoModelForCausalLM.from_pretrained(folder, dtype=job["dtype"])
    ends = [causal(**tokenizer(text, return_tensors="pt")).logits[0, -1].float() for text in texts]
    return [float(torch.sigmoid(end[yes] - end[no])) for end in ends]


def answer(job: dict[str, Any]) -> Any:
    folder = Path(job["folder"])
    contract = json.loads((folder / "qwen3emb.json").read_text())
    return vectors(folder, job, contract) if "texts" in job else scores(folder, job, contract)


with torch.inference_mode():
    found = {name: answer(job) for name, job in json.load(sys.stdin).items()}
print(json.dumps({"version": transformers.__version__, "answers": found}))
