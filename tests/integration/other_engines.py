"""What other engines make of exported models, each in a process of its own: vLLM, and transformers 4 (`make legacy`).

Both take one order as JSON: `embedding`, `reranker`, `classifier` (directories; no reranker, no scores), `dtypes`,
`texts` with their prompts, `inputs` (token ids of the reranker), `answers` (ids of yes and no). They answer with
`vectors`, `scores` (of the causal LM) and `classified` (of the one-label form) by dtype.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LEGACY = ROOT / ".venv-legacy"

VLLM = """
import json, sys
from vllm import LLM
order, found = json.load(sys.stdin), {}
for dtype in order["dtypes"]:
    def engine(folder):
        return LLM(folder, runner="pooling", dtype=dtype, enforce_eager=True, max_model_len=1024)
    vectors = engine(order["embedding"]).embed(order["texts"], use_tqdm=False)
    prompts = [{"prompt_token_ids": ids} for ids in order["inputs"]]
    scores = engine(order["classifier"]).classify(prompts, use_tqdm=False)
    found[dtype] = {"vectors": [list(map(float, one.outputs.embedding)) for one in vectors],
                    "classified": [float(one.outputs.probs[0]) for one in scores]}
print("ANSWER" + json.dumps(found))
"""

TRANSFORMERS = """
import json, sys
import torch, transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
order, found = json.load(sys.stdin), {}
tokenizer = AutoTokenizer.from_pretrained(order["embedding"])
def opened(kind, folder, dtype):
    return kind.from_pretrained(folder, torch_dtype=getattr(torch, dtype)).eval()
with torch.inference_mode():
    for dtype in order["dtypes"]:
        trunk = opened(AutoModel, order["embedding"], dtype)
        last = [trunk(**tokenizer(t, return_tensors="pt")).last_hidden_state[0, -1].float() for t in order["texts"]]
        here = {"vectors": [torch.nn.functional.normalize(v, dim=0).tolist() for v in last]}
        if order["reranker"]:
            yes, no = order["answers"]
            inputs = [torch.tensor([ids]) for ids in order["inputs"]]
            causal = opened(AutoModelForCausalLM, order["reranker"], dtype)
            logits = [causal(ids).logits[0, -1].float() for ids in inputs]
            here["scores"] = [float(torch.sigmoid(row[yes] - row[no])) for row in logits]
            classifier = opened(AutoModelForSequenceClassification, order["classifier"], dtype)
            here["classified"] = [float(torch.sigmoid(classifier(ids).logits[0, 0].float())) for ids in inputs]
        found[dtype] = here
print("ANSWER" + json.dumps(found | {"version": transformers.__version__}))
"""


def vllm(order: dict[str, Any]) -> dict[str, Any]:
    """vLLM's answer."""
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    return _asked(VLLM, order, settings | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})


def transformers_4(order: dict[str, Any]) -> dict[str, Any]:
    """The answer of transformers 4, on the torch of this environment."""
    return _asked(TRANSFORMERS, order, {"PYTHONPATH": str(LEGACY)})


def _asked(code: str, order: dict[str, Any], settings: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | settings,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    assert lines, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(lines[0].removeprefix("ANSWER"))
    return answer
