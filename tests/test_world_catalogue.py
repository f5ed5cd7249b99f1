"""The settings of a world and the draws of its catalogue."""

from typing import Any

import numpy as np
import pytest
from numpy.random import Generator

from features.errors import ListeningError
from features.offline import world_catalogue
from features.offline.world import WorldSettings


@pytest.mark.parametrize("wrong", [{"items": 299}, {"listeners": 0}, {"listens_per_listener": 0}, {"seed": -1}])
def test_a_world_too_small_is_refused(wrong: dict[str, int]) -> None:
    """Settings that cannot make a world are an error at once, which names the setting and its minimum."""
    [(name, value)] = wrong.items()
    with pytest.raises(ListeningError, match=f"world's {name} must be at least {value + 1}, not {value}"):
        WorldSettings(**wrong)  # type: ignore[arg-type]


class Silence(Generator):
    """Draws nothing but zeros, which by chance a generator may do."""

    def standard_exponential(self, size: Any = None, *_: Any, **__: Any) -> Any:
        """Zeros."""
        return np.zeros(size, np.float32)


def test_a_genre_without_weight_is_never_drawn() -> None:
    """Also where its turn would be zero divided by zero; nothing is warned of."""
    weights = np.zeros(len(world_catalogue.GENRES))
    weights[:2] = 1
    with np.errstate(all="raise"):
        drawn = world_catalogue.genre_sets(Silence(np.random.PCG64(1)), weights, np.array([3, 3, 1]))
    assert np.sort(drawn, axis=1).tolist() == [[-1, -1, 0, 1]] * 2 + [[-1, -1, -1, drawn[2, 0]]]
