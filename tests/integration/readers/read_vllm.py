"""What vLLM's pooling and score runners make of exported directories: run in a process of its own.

Jobs and answers as in read_transformers.py; jobs of one directory and dtype share an engine.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

from vllm import LLM, PoolingParams
from vllm import __version__ as version
from vllm.distributed import cleanup_dist_env_and_memory


def answer(llm: Any, job: dict[str, Any]) -> Any:
    folder = Path(job["folder"])
    if "texts" in job:
        prompt = json.loads((folder / "qwen3emb.json").read_text())["prompts"][job["prompt"]]
        params = PoolingParams(dimensions=job.get("dimensions"))
        outputs = llm.embed([prompt + text for text in job["texts"]], pooling_params=params, use_tqdm=False)
        return [list(map(float, output.outputs.embedding)) for output in outputs]
    template = (folder / "chat_template.jinja").read_text()
    outputs = llm.score(job["query"], job["documents"], chat_template=template, use_tqdm=False)
    return [float(output.outputs.score) for output in outputs]


def answers(jobs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    found = {}
    for (folder, dtype), group in itertools.groupby(jobs.items(), key=lambda x: (x[1]["folder"], x[1]["dtype"])):
        llm = LLM(folder, runner="pooling", dtype=dtype, enforce_eager=True, max_model_len=256)
        found |= {name: answer(llm, job) for name, job in group}
        del llm
        cleanup_dist_env_and_memory()
    return found


if __name__ == "__main__":
    result = answers(json.load(sys.stdin))
    print(json.dumps({"version": version, "answers": result}))
