import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftbert.batching import pack, plan, spread
from ftbert.errors import InputError

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=60)


def rows_of(lengths):
    start = 0
    rows = []
    for length in lengths:
        rows.append(list(range(start, start + length)))
        start += length
    return rows


@given(LENGTHS)
def test_pack_keeps_every_token_in_place(lengths):
    rows = rows_of(lengths)
    batch = pack(rows, [[i % 2 for i in row] for row in rows])
    assert batch.num_rows == len(lengths) and batch.num_tokens == sum(lengths)
    for row, begin, end in zip(rows, batch.row_splits, batch.row_splits[1:]):
        assert batch.token_ids[begin:end].tolist() == row
        assert batch.segment_ids[begin:end].tolist() == [i % 2 for i in row]
    assert {array.dtype for array in batch} == {np.dtype(np.int32)}


@given(LENGTHS, st.randoms())
def test_take_is_packing_the_rows_named(lengths, random):
    rows = rows_of(lengths)
    batch = pack(rows)
    chosen = [random.randrange(len(rows)) for _ in range(random.randint(1, 8))]
    taken = batch.take(np.array(chosen))
    expected = pack([rows[i] for i in chosen])
    for got, want in zip(taken, expected):
        assert np.array_equal(got, want)


@given(LENGTHS, st.integers(1, 120))
def test_plan_names_each_row_once_within_the_budget(lengths, budget):
    groups = plan(np.array(lengths), budget)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    for group in groups:
        assert len(group) >= 1
        total = sum(lengths[i] for i in group)
        assert total <= budget or len(group) == 1
    ordered = [lengths[i] for group in groups for i in group]
    assert ordered == sorted(lengths, reverse=True)


@given(LENGTHS, st.integers(1, 120), st.integers(1, 40))
def test_rows_that_fit_a_tile_are_dealt_out_within_the_budget(lengths, budget, tile):
    groups = plan(np.array(lengths), budget, tile)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    totals = [sum(lengths[i] for i in group) for group in groups]
    assert all(total <= budget or len(group) == 1 for total, group in zip(totals, groups))


def test_batches_for_tiles_have_rows_of_all_lengths():
    lengths = np.array([10, 200, 100, 90, 20, 30, 80, 40, 70, 60, 50, 129] * 10)
    longer, *dealt = plan(lengths, 3500, 128)
    assert set(lengths[longer]) == {200, 129}
    assert len(dealt) == 2  # of 5,500 tokens
    for group in dealt:
        assert len(group) == 50 and len(set(lengths[group])) == 10
        assert abs(lengths[group].sum() - 2750) <= 100
    short = lengths[lengths <= 128]
    assert [short[group].sum() for group in spread(short, 2, 128)] == [lengths[group].sum() for group in dealt]
    assert set(lengths[spread(lengths, 4, 128)[0]]) == {200, 129}  # some are too long: longest first


@given(LENGTHS, st.integers(1, 60))
def test_spread_names_each_row_once_in_even_parts(lengths, parts):
    parts = min(parts, len(lengths))
    groups = spread(np.array(lengths), parts)
    assert len(groups) == parts and all(len(group) for group in groups)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    if parts * 4 < len(lengths):
        assert max(sum(lengths[i] for i in group) for group in groups) <= sum(lengths) / parts + max(lengths)


@pytest.mark.parametrize("parts", [0, 4])
def test_spread_refuses_more_parts_than_rows(parts):
    with pytest.raises(InputError, match="parts"):
        spread(np.array([1, 2, 3]), parts)


def test_rows_too_long_for_16_bits_are_sorted_all_the_same():
    assert [group.tolist() for group in plan(np.array([5, 40000, 7]), 50000)] == [[1, 2, 0]]


def test_plan_of_nothing_is_nothing():
    assert plan(np.array([], np.int64), 10) == []


@pytest.mark.parametrize(
    "tokens, segments, message",
    [
        ([], None, "at least one row"),
        ([[1], []], None, "row 1 is empty"),
        ([[1, 2]], [[0]], "same row lengths"),
        ([[1, 1 << 31]], None, "token_ids: expected rows of 32-bit integers"),
        ([[1.5]], None, "32-bit integers, got float64"),
        ([["1"]], None, "32-bit integers"),
        ([[1]], [[0.5]], "segment_ids: expected rows of 32-bit integers"),
    ],
)
def test_pack_refuses(tokens, segments, message):
    with pytest.raises(InputError, match=message):
        pack(tokens, segments)


def test_plan_refuses_a_budget_of_nothing():
    with pytest.raises(InputError, match="batch_tokens"):
        plan(np.array([1]), 0)
