from itertools import chain

import pyarrow as pa
import pytest

from qwen3emb.core.records import PASSAGE
from qwen3emb.core.storage import Storage
from qwen3emb.synthesis.blocks import plan_blocks, read_block


def passage(name: str, text: str = "some text") -> dict[str, str]:
    return {"id": name, "text": text, "title": "", "language": "en", "source": "here"}


@pytest.fixture
def folder(tmp_path) -> Storage:
    """Three files of 7, 0 and 6 passages."""
    storage = Storage(str(tmp_path / "passages"))
    for file, count in (("a", 7), ("b", 0), ("c", 6)):
        rows = [passage(f"{file}{n}", f"text of {file}{n}") for n in range(count)]
        storage.write_table(f"{file}.parquet", pa.Table.from_pylist(rows, schema=PASSAGE))
    return storage


EVERY = [f"a{n}" for n in range(7)] + [f"c{n}" for n in range(6)]


def ids(folder: Storage, plan) -> list[list[str]]:
    return [[row["id"] for row in read_block(folder, plan, block)] for block in plan.blocks]


@pytest.mark.parametrize("size", [1, 2, 4, 5, 7, 13, 64])
def test_blocks_hold_every_passage_once_and_are_full_but_the_last(folder, size) -> None:
    plan = plan_blocks(folder, 0, None, size)
    found = ids(folder, plan)
    assert list(chain(*found)) == EVERY
    assert all(len(names) == size for names in found[:-1])
    assert [len(names) for names in found] == [block.rows for block in plan.blocks]
    assert plan.rows == 13
    assert len({block.name for block in plan.blocks}) == len(plan.blocks)


def test_a_subset_has_the_wanted_size_and_grows_with_it(folder) -> None:
    chosen = {n: set(chain(*ids(folder, plan_blocks(folder, 0, n, 3)))) for n in (1, 4, 9, 13, 99)}
    assert [len(names) for names in chosen.values()] == [1, 4, 9, 13, 13]
    assert chosen[1] < chosen[4] < chosen[9] < chosen[13]
    other = set(chain(*ids(folder, plan_blocks(folder, 1, 4, 3))))
    assert other != chosen[4]


def test_the_plan_is_the_same_every_time_and_names_tell_other_content(folder) -> None:
    before = plan_blocks(folder, 0, 9, 4)
    assert plan_blocks(folder, 0, 9, 4) == before
    folder.write_table("a.parquet", pa.Table.from_pylist([passage("new")], schema=PASSAGE))
    after = plan_blocks(folder, 0, 9, 4)
    assert not {b.name for b in before.blocks} & {b.name for b in after.blocks}


def test_bad_passages_are_in_their_block_with_the_reason(tmp_path) -> None:
    folder = Storage(str(tmp_path))
    rows = [passage("x"), passage("y", " \n"), passage("x", "another"), passage("z", "a\x00b"), passage("x")]
    folder.write_table("one.parquet", pa.Table.from_pylist(rows[:3], schema=PASSAGE))
    folder.write_table("two.parquet", pa.Table.from_pylist(rows[3:], schema=PASSAGE))
    plan = plan_blocks(folder, 0, None, 10)
    [block] = plan.blocks
    found = [(r["id"], (r["problem"] or "ok").partition(":")[0]) for r in read_block(folder, plan, block)]
    codes = ["ok", "empty_passage", "duplicate_id", "control_character", "duplicate_id"]
    assert found == list(zip(["x", "y", "x", "z", "x"], codes, strict=True))


def test_no_passages_give_no_blocks(tmp_path) -> None:
    assert plan_blocks(Storage(str(tmp_path / "nothing")), 0, 5, 10).blocks == ()


def test_blocks_are_of_one_split_and_its_passages_are_counted_alone(tmp_path) -> None:
    storage = Storage(str(tmp_path))
    rows = [passage(f"p{n}") | {"split": ["train", "heldout", "dev"][n % 3]} for n in range(30)]
    storage.write_table("a.parquet", pa.Table.from_pylist(rows, schema=PASSAGE))
    for split, place in (("train", 0), ("heldout", 1), ("dev", 2)):
        names = [f"p{n}" for n in range(30) if n % 3 == place]
        assert list(chain(*ids(storage, plan_blocks(storage, 0, None, 4, split)))) == names
        plan = plan_blocks(storage, 0, 6, 4, split)
        chosen = list(chain(*ids(storage, plan)))
        assert len(chosen) == plan.rows == 6 and set(chosen) < set(names)
