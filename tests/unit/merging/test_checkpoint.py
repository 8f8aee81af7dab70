"""Merging checkpoint directories: values, files, refusals, and what a killed merge leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qwen3emb.core.errors import UserError
from qwen3emb.merging import pieces
from qwen3emb.merging.checkpoint import merge_checkpoints
from qwen3emb.merging.pieces import Piece, _header, _plan_shards, merge_piece
from qwen3emb.merging.report import SlerpReport
from qwen3emb.merging.stored_weights import Entry

Tensors = dict[str, torch.Tensor]
CONFIG = {"architectures": ["Qwen3Model"], "vocab_size": 16, "tie_word_embeddings": True}


def tensors(seed: int) -> Tensors:
    g = torch.Generator().manual_seed(seed)
    return {
        "embed_tokens.weight": torch.randn(16, 8, generator=g).bfloat16(),
        "layers.0.q_proj.weight": torch.randn(8, 8, generator=g).bfloat16(),
        "layers.0.scale": torch.randn((), generator=g),
        "norm.weight": torch.ones(8).bfloat16(),
        "positions": torch.arange(5),
    }


def write(root: Path, values: Tensors, shards: int = 1) -> Path:
    root.mkdir(parents=True)
    (root / "config.json").write_text(json.dumps(CONFIG))
    (root / "tokenizer.json").write_text('{"version": "1.0"}')
    if shards == 1:
        save_file(values, root / "model.safetensors", metadata={"format": "pt"})
        return root
    weight_map = {name: f"model-{i % shards + 1}.safetensors" for i, name in enumerate(values)}
    for file in set(weight_map.values()):
        save_file({name: values[name] for name in values if weight_map[name] == file}, root / file)
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return root


def read(root: Path) -> Tensors:
    """Read a merged directory with safetensors' own reader, through the index where there is one."""
    index = root / "model.safetensors.index.json"
    if not index.exists():
        return load_file(root / "model.safetensors")
    weight_map = json.loads(index.read_text())["weight_map"]
    loaded = {file: load_file(root / file) for file in set(weight_map.values())}
    assert sum(len(part) for part in loaded.values()) == len(weight_map)
    return {name: loaded[file][name] for name, file in weight_map.items()}


def slerp64(a: torch.Tensor, b: torch.Tensor, alpha: float) -> torch.Tensor:
    x, y = (t.double().numpy().reshape(-1) for t in (a, b))
    theta = np.arccos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    merged = (np.sin((1 - alpha) * theta) * x + np.sin(alpha * theta) * y) / np.sin(theta)
    return torch.tensor(merged).reshape(a.shape).to(a.dtype)


def test_two_checkpoints_merge_to_slerp_tensor_by_tensor(tmp_path: Path) -> None:
    one, two = tensors(1), tensors(2)
    report = merge_checkpoints(
        [write(tmp_path / "a", one), write(tmp_path / "b", two)], tmp_path / "deep" / "out", weights=[3, 1]
    )
    merged = read(tmp_path / "deep" / "out")
    assert merged.keys() == one.keys()
    for name in ("embed_tokens.weight", "layers.0.q_proj.weight"):
        assert torch.equal(merged[name], slerp64(one[name], two[name], 0.25))
    scale = "layers.0.scale"
    torch.testing.assert_close(merged[scale], 0.75 * one[scale] + 0.25 * two[scale])
    assert torch.equal(merged["norm.weight"], one["norm.weight"])
    assert torch.equal(merged["positions"], one["positions"])
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]
    assert report.weights == (0.75, 0.25)
    rows = {row.name: row for row in report.rows}
    assert rows.keys() == one.keys()
    assert (rows["norm.weight"].path, rows["norm.weight"].reason) == ("lerp", "parallel")
    assert (rows["positions"].path, rows["positions"].reason) == ("copy", "not a float tensor")
    assert rows["embed_tokens.weight"].path == "slerp"


def test_the_report_sums_up_and_is_json(tmp_path: Path) -> None:
    sources = [write(tmp_path / name, tensors(seed)) for name, seed in (("a", 1), ("b", 2))]
    report = merge_checkpoints(sources, tmp_path / "out")
    loaded = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert loaded["summary"] == json.loads(json.dumps(report.summary()))
    assert sum(loaded["summary"]["paths"].values()) == len(loaded["rows"]) == 5
    assert loaded["summary"]["paths"]["slerp"] == 2 + (loaded["summary"]["paths"]["lerp"] == 1)
    angles = [row["angle_degrees"] for row in loaded["rows"] if row["angle_degrees"] is not None]
    assert loaded["summary"]["mean_angle_degrees"] == pytest.approx(sum(angles) / len(angles))
    assert loaded["summary"]["max_angle_degrees"] == max(angles) > 60
    assert loaded["summary"]["elements"] == 16 * 8 + 64 + 1 + 8 + 5


@pytest.mark.parametrize("limit", [1, 150, 260, 10**9])
def test_shards_in_and_out(tmp_path: Path, limit: int) -> None:
    one, two = tensors(1), tensors(2)
    sources = [write(tmp_path / "a", one, shards=2), write(tmp_path / "b", two)]
    merge_checkpoints(sources, tmp_path / "out", max_shard_bytes=limit)
    merge_checkpoints([sources[1], sources[0]], tmp_path / "swapped")
    merged, swapped = read(tmp_path / "out"), read(tmp_path / "swapped")
    assert merged.keys() == one.keys()
    for name, value in merged.items():
        assert torch.equal(value, swapped[name])
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    if limit == 10**9:
        assert shards == ["model.safetensors"]
        return
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors" and len(shards) > 1
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(v.numel() * v.element_size() for v in merged.values())
    for shard in shards:
        part = load_file(tmp_path / "out" / shard)
        assert len(part) == 1 or sum(v.numel() * v.element_size() for v in part.values()) <= limit
        with safe_open(tmp_path / "out" / shard, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize("prefix", ["model.", "encoder.model."])
def test_three_checkpoints_on_task_vectors(tmp_path: Path, prefix: str) -> None:
    base = tensors(0)
    step = [{n: base[n] + 0.05 * v if v.is_floating_point() else v for n, v in tensors(s).items()} for s in (1, 2, 3)]
    step = [{n: v.to(base[n].dtype) for n, v in values.items()} for values in step]
    paths = [write(tmp_path / f"c{i}", values) for i, values in enumerate(step)]
    # a causal-LM base: float32, prefixed names (of a wrapper, too), one tensor more
    causal = {f"{prefix}{n}": v.float() if v.is_floating_point() else v for n, v in base.items()}
    origin = write(tmp_path / "base", {**causal, "lm_head.weight": torch.ones(2)})
    report = merge_checkpoints(paths, tmp_path / "out", base=origin, on="task_vectors")
    merged = read(tmp_path / "out")
    rows = {row.name: row for row in report.rows}
    for name in ("embed_tokens.weight", "layers.0.q_proj.weight"):
        vectors = [values[name].double() - base[name].double() for values in step]
        step_64 = sum(c * v for c, v in zip(rows[name].coefficients, vectors, strict=True))
        assert torch.equal(merged[name], (base[name].double() + step_64).bfloat16())
        assert rows[name].path == "slerp" and rows[name].excess > 0.1
    assert report.base == str(origin)
    raw = merge_checkpoints(paths, tmp_path / "raw")
    assert (raw.summary()["max_angle_degrees"] or 0) < 10 < (report.summary()["mean_angle_degrees"] or 0)


def test_a_linear_merge_is_the_weighted_sum(tmp_path: Path) -> None:
    one, two = tensors(1), tensors(2)
    paths = [write(tmp_path / name, values) for name, values in (("a", one), ("b", two))]
    report = merge_checkpoints(paths, tmp_path / "out", weights=[3, 1], linear=True)
    merged = read(tmp_path / "out")
    name = "embed_tokens.weight"
    assert torch.equal(merged[name], (0.75 * one[name].double() + 0.25 * two[name].double()).bfloat16())
    row = {row.name: row for row in report.rows}[name]
    assert (row.path, row.reason, row.coefficients) == ("lerp", "asked for", (0.75, 0.25))
    assert (row.angle_degrees or 0) > 60


def test_torch_has_its_threads_back_after_a_merge(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        merge_checkpoints([write(tmp_path / str(seed), tensors(seed)) for seed in (1, 2)], tmp_path / "out")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_pieces_merged_in_any_order_give_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 100)
    paths = [write(tmp_path / name, tensors(seed)) for name, seed in (("a", 1), ("b", 2))]
    counted: list[int] = []

    def backwards(found: Sequence[Piece]) -> list[list[SlerpReport]]:
        counted.append(len(found))
        return [merge_piece(piece) for piece in reversed(found)][::-1]

    whole = merge_checkpoints(paths, tmp_path / "whole")
    apart = merge_checkpoints(paths, tmp_path / "apart", run_pieces=backwards)
    assert counted == [3]
    assert whole.rows == apart.rows
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "apart/model.safetensors").read_bytes()


def test_other_files_come_from_the_first_checkpoint(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, tensors(i)) for i, name in enumerate("ab")]
    for path in paths:
        (path / ".cache").mkdir()
        for name in ("1_Pooling/config.json", "modules.json", "opt.pt", "artifact.json", ".cache/lock"):
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_text("same")
        (path / "prompts.json").write_text(path.name)
        (path / "2_Dense").mkdir()
        save_file({"linear.weight": torch.ones(2, 2)}, path / "2_Dense" / "model.safetensors")
    report = merge_checkpoints(paths, tmp_path / "out")
    out = tmp_path / "out"
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == {
        "config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json", "modules.json",
        "prompts.json", "2_Dense/model.safetensors",
    }  # fmt: skip
    assert (out / "prompts.json").read_text() == "a"
    assert "2_Dense/linear.weight" in {row.name for row in report.rows}


def test_one_checkpoint_is_copied_bit_for_bit(tmp_path: Path) -> None:
    values = {**tensors(1), "odd": torch.tensor([float("nan"), -0.0, float("inf")])}
    report = merge_checkpoints([write(tmp_path / "a", values)], tmp_path / "out")
    merged = read(tmp_path / "out")
    for name, value in values.items():
        assert torch.equal(merged[name].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8))
    assert "Only one checkpoint" in report.note
    assert {row.path for row in report.rows} == {"copy"}


def edit(root: Path, key: str, value: object) -> None:
    (root / "config.json").write_text(json.dumps({**CONFIG, key: value}))


def swap(root: Path, name: str, value: torch.Tensor | None) -> None:
    values = {**tensors(2), name: value}
    save_file({n: v for n, v in values.items() if v is not None}, root / "model.safetensors")


REFUSED: list[tuple[Callable[[Path], object], str]] = [
    (lambda b: edit(b, "architectures", ["LlamaModel"]), "architectures.*Qwen3Model.*LlamaModel"),
    (lambda b: edit(b, "vocab_size", 17), "vocab_size.*16.*17"),
    (lambda b: (b / "config.json").unlink(), "config.json is not readable"),
    (lambda b: (b / "config.json").write_text("[]"), "config.json is not readable"),
    (lambda b: (b / "tokenizer.json").write_text("{}"), "content of tokenizer.json"),
    (lambda b: (b / "tokenizer.json").unlink(), "content of tokenizer.json.*missing"),
    (lambda b: swap(b, "lm_head.weight", torch.ones(1)), "'lm_head.weight' is missing"),
    (lambda b: swap(b, "norm.weight", None), "'norm.weight' is BF16 .8,. .* missing"),
    (lambda b: swap(b, "norm.weight", torch.ones(9).bfloat16()), "8,.*9,"),
    (lambda b: swap(b, "norm.weight", torch.ones(8)), "norm.weight.*BF16.*F32"),
    (lambda b: swap(b, "positions", torch.ones(5).long()), "positions.*only floats"),
    (lambda b: swap(b, "norm.weight", torch.full((8,), torch.nan).bfloat16()), "norm.weight.*number 2.*NaN"),
    (lambda b: swap(b, "q", torch.ones(2).to(torch.float8_e4m3fn)), "quantised"),
    (lambda b: (b / "model.safetensors").unlink(), "has no model"),
    (lambda b: (b / "model.safetensors").rename(b / "pytorch_model.bin"), "safetensors only"),
    (lambda b: (b / "model.safetensors").write_bytes(b"\x10"), "cannot be read"),
    (lambda b: (b / "model.safetensors").rename(b / "model-1.safetensors"), "cannot be read.*index"),
    (lambda b: b.rename(b.parent / "elsewhere"), "is not a directory"),
]


@pytest.mark.parametrize(("spoil", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_mismatches_are_refused_and_leave_nothing(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    paths = [write(tmp_path / name, tensors(i)) for i, name in enumerate("ab")]
    spoil(paths[1])
    with pytest.raises(UserError, match=message) as caught:
        merge_checkpoints(paths, tmp_path / "place" / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "place").exists() or not list((tmp_path / "place").iterdir())


def test_a_tokenizer_in_an_older_form_is_compared_where_there_is_no_other(tmp_path: Path) -> None:
    a, b = (write(tmp_path / name, tensors(i)) for i, name in enumerate("ab"))
    (a / "merges.txt").write_text("a b")
    merge_checkpoints([a, b], tmp_path / "out")
    for root in (a, b):
        (root / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"content of merges\.txt.*missing"):
        merge_checkpoints([a, b], tmp_path / "other")
    (b / "merges.txt").write_text("a c")
    with pytest.raises(UserError, match=r"content of merges\.txt"):
        merge_checkpoints([a, b], tmp_path / "other")


def test_contradictory_arguments_are_refused(tmp_path: Path) -> None:
    a, b = (write(tmp_path / name, tensors(i)) for i, name in enumerate("ab"))
    c = write(tmp_path / "c", {"other": torch.ones(1)})
    out = tmp_path / "out"
    with pytest.raises(UserError, match="nothing to merge"):
        merge_checkpoints([], out)
    with pytest.raises(UserError, match="3 merge weights are given for 2"):
        merge_checkpoints([a, b], out, weights=[1, 1, 1])
    with pytest.raises(UserError, match="no base is given"):
        merge_checkpoints([a, b], out, on="task_vectors")
    with pytest.raises(UserError, match="is missing in the base"):
        merge_checkpoints([a, b], out, on="task_vectors", base=c)
    with pytest.raises(UserError, match="on is 'task'"):
        merge_checkpoints([a, b], out, on="task")
    with pytest.raises(UserError, match="max_shard_bytes"):
        merge_checkpoints([a, b], out, max_shard_bytes=0)
    for taken in (a, a / "inside", tmp_path):
        with pytest.raises(UserError, match="overlap"):
            merge_checkpoints([a, b], taken)
    with pytest.raises(UserError, match="exists already"):
        merge_checkpoints([a, b], c)
    assert not out.exists()


def test_a_killed_merge_leaves_no_output_and_the_next_one_succeeds(tmp_path: Path) -> None:
    big = {"w": torch.randn(300_000), "v": torch.randn(300_000)}
    paths = [write(tmp_path / "src" / name, {n: v * s for n, v in big.items()}) for name, s in (("a", 1), ("b", -3))]
    out = tmp_path / "to" / "out"
    # the kernel kills the process in the middle of the second tensor, at 2 MB of the file
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from qwen3emb.merging.checkpoint import merge_checkpoints\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
        "merge_checkpoints([Path(p) for p in sys.argv[1:3]], Path(sys.argv[3]))\n"
    )
    command = [sys.executable, "-c", code, *map(str, paths), str(out)]
    root = Path(__file__).parents[3]
    child = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=False)
    assert child.returncode == -signal.SIGXFSZ
    assert not out.exists() and len(list(out.parent.iterdir())) == 1
    merge_checkpoints(paths, out)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert read(out).keys() == big.keys()


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(["F64", "F32", "BF16", "U8"]), st.lists(st.integers(0, 4), max_size=3)),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 200),
)
@settings(max_examples=50, deadline=None)
def test_shard_plan_and_header_are_valid(table: dict[str, tuple[str, list[int]]], limit: int) -> None:
    entries = {n: Entry(Path(), n, dtype, tuple(shape)) for n, (dtype, shape) in table.items()}
    shards = _plan_shards(entries, limit)
    assert sorted(name for names in shards for name in names) == sorted(entries)
    for names in shards:
        sizes = [entries[name].nbytes for name in names]
        assert len(names) == 1 or sum(sizes) <= limit
        header = _header({name: entries[name] for name in names})
        length = int.from_bytes(header[:8], "little")
        assert length == len(header) - 8 and length % 8 == 0
        parsed = json.loads(header[8:])
        assert parsed.pop("__metadata__") == {"format": "pt"}
        assert [parsed[name]["data_offsets"][1] for name in names] == np.cumsum(sizes).tolist()
        widths = {"F64": 8, "F32": 4, "BF16": 2, "U8": 1}
        assert all(parsed[name]["data_offsets"][0] % widths[parsed[name]["dtype"]] == 0 for name in names)
