"""Keys in Redis, and the hash behind them."""

import numpy as np
import pytest
import redis.crc

from features.keys import PARTITIONS, Keys, hash64, item_keys, partition


@pytest.mark.parametrize(
    ("text", "value"),
    [("", 0), ("abc", 0xB4963F3F3FAD7867), ("hello", 0xCBD8A7B341BD9B02)],
)
def test_the_hash_is_murmur3_x64_128s_low_half(text: str, value: int) -> None:
    """Published values of MurmurHash3_x64_128 with seed 0; other languages can find the same keys."""
    assert hash64(text) == value


def test_item_keys_are_the_hash_of_each_id() -> None:
    """The column equals the single hash, in order."""
    ids = ["t0000001", "artist:42", "Ünïcödé", ""]
    assert item_keys(ids).tolist() == [hash64(item_id) for item_id in ids]
    assert item_keys([]).dtype == np.uint64


def test_every_key_of_a_listener_stands_on_one_slot() -> None:
    """The partition is the hash tag, so scripts and MGET over a listener's keys stay on one node of a cluster."""
    keys = Keys(prefix="mantel")
    for user in ("u1", "u2", "some.one-else_9"):
        named = [keys.record(user, "0011223344556677"), keys.listener("s", user), keys.listener("p", user)]
        assert len({redis.crc.key_slot(key.encode()) for key in named}) == 1
        assert all(f"{{{partition(user)}}}" in key for key in named)


def test_listeners_spread_evenly_over_partitions() -> None:
    """64 partitions, each within a quarter of its share for 64,000 listeners."""
    counts = np.bincount([partition(f"u{number}") for number in range(64_000)], minlength=PARTITIONS)
    assert len(counts) == PARTITIONS
    assert counts.min() > 750
    assert counts.max() < 1250


def test_the_records_pattern_matches_its_space_only() -> None:
    """Collecting one space never touches another, nor other kinds of keys."""
    keys = Keys(prefix="mantel")
    pattern = keys.records_pattern("00112233aabbccdd")
    assert pattern == "mantel:{*}:r:00112233aabbccdd:*"
