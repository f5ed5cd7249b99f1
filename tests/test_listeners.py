"""Listener records: what is written is what is read, and nothing else is believed."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.listeners import MAX_RECENT, Known, ListenerRecord, decode, encode

SPACE = 0x0123456789ABCDEF


def draw(seed: int, *, dimension: int = 16, genres: int = 9) -> ListenerRecord:
    """A random record."""
    rng = np.random.default_rng(seed)
    recents, weights = int(rng.integers(0, MAX_RECENT + 1)), int(rng.integers(0, genres + 1))
    return ListenerRecord(
        vector=rng.normal(size=dimension).astype(np.float16),
        total_plays=int(rng.integers(0, 2**32)),
        segment=int(rng.integers(0, 32)),
        market=str(rng.choice(["", "GB", "DE"])),
        allow_explicit=bool(rng.integers(2)),
        created_day=int(rng.integers(0, 30_000)),
        recent_keys=rng.integers(0, 2**64, recents, np.uint64),
        recent_days=rng.integers(0, 2**16, recents).astype(np.uint16),
        recent_plays=rng.integers(0, 2**16, recents).astype(np.uint16),
        genre_index=rng.permutation(genres)[:weights].astype(np.uint16),
        genre_weight=rng.random(weights).astype(np.float16),
    )


@given(seeds=st.lists(st.integers(0, 10_000) | st.none(), max_size=16))
@settings(deadline=None)
def test_a_batch_decodes_to_what_was_encoded(seeds: list[int | None]) -> None:
    """Every field of every record comes back in its row; an absent frame is a stranger's row."""
    records = [None if seed is None else draw(seed) for seed in seeds]
    frames = [None if record is None else encode(record, SPACE) for record in records]
    read = decode(frames, space_id=SPACE, dimension=16, genres=9)
    for row, record in enumerate(records):
        mine = slice(read.recent_start[row], read.recent_start[row + 1])
        if record is None:
            assert read.known[row] == Known.STRANGER
            assert not read.vectors[row].any()
            assert read.recent_keys[mine].size == 0
            continue
        assert read.known[row] == Known.RECORD
        assert read.vectors[row].tolist() == record.vector.astype(np.float32).tolist()
        assert (read.total_plays[row], read.segment[row]) == (record.total_plays, record.segment)
        assert (read.market[row], read.allow_explicit[row]) == (record.market, record.allow_explicit)
        assert read.recent_keys[mine].tolist() == record.recent_keys.tolist()
        assert read.recent_days[mine].tolist() == record.recent_days.tolist()
        assert read.recent_plays[mine].tolist() == record.recent_plays.tolist()
        wanted = np.zeros(9, np.float32)
        wanted[record.genre_index] = record.genre_weight
        assert read.genre_weights[row].tolist() == wanted.tolist()


@given(seed=st.integers(0, 10_000), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(deadline=None)
def test_any_flipped_bit_is_noticed(seed: int, where: float, bit: int) -> None:
    """One bit anywhere in a frame, and its row is INVALID while its neighbour stays whole."""
    frame = encode(draw(seed), SPACE)
    broken = bytearray(frame)
    broken[int(where * len(broken))] ^= 1 << bit
    read = decode([bytes(broken), frame], space_id=SPACE, dimension=16, genres=9)
    assert read.known.tolist() == [Known.INVALID, Known.RECORD]
    assert not read.vectors[0].any()


@given(junk=st.binary(max_size=600))
@settings(deadline=None)
def test_junk_is_invalid_and_never_an_error(junk: bytes) -> None:
    """Whatever bytes stand in Redis, reading them costs their own row only."""
    assert decode([junk], space_id=SPACE, dimension=16, genres=9).known.tolist() == [Known.INVALID]


@pytest.mark.parametrize("cut", [0, 1, 20, 36, 50, -1])
def test_a_truncated_frame_is_invalid(cut: int) -> None:
    """A frame's own length is checked before its content."""
    frame = encode(draw(1), SPACE)
    assert decode([frame[:cut]], space_id=SPACE, dimension=16, genres=9).known.tolist() == [Known.INVALID]


def test_another_space_or_dimension_is_invalid() -> None:
    """A vector of another embedding space is never used, even at the same dimension."""
    frame = encode(draw(1), SPACE)
    assert decode([frame], space_id=SPACE + 1, dimension=16, genres=9).known.tolist() == [Known.INVALID]
    assert decode([frame], space_id=SPACE, dimension=32, genres=9).known.tolist() == [Known.INVALID]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_no_vector_is_invalid(value: float) -> None:
    """A checksum says that bytes are whole, not that they make sense."""
    record = draw(1)
    vector = record.vector.copy()
    vector[3] = value
    frame = encode(replace(record, vector=vector), SPACE)
    read = decode([frame], space_id=SPACE, dimension=16, genres=9)
    assert read.known.tolist() == [Known.INVALID]
    assert not read.vectors.any()


def test_what_is_missing_has_the_reason_that_the_store_gives() -> None:
    """Without an answer every row carries the store's reason, not cold start."""
    read = decode([None, None], space_id=SPACE, dimension=16, genres=9, missing=Known.DOWN)
    assert read.known.tolist() == [Known.DOWN, Known.DOWN]


@pytest.mark.parametrize("missing", [Known.LATE, Known.DOWN, Known.STRANGER])
def test_explicit_items_are_refused_where_nobody_can_say(missing: Known) -> None:
    """A listener's record that cannot be had may forbid them; a stranger never said so."""
    broken = encode(draw(1), SPACE)[:-1]
    read = decode([None, broken], space_id=SPACE, dimension=16, genres=9, missing=missing)
    assert read.allow_explicit.tolist() == [missing is Known.STRANGER, False]
