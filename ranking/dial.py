"""The discovery dial: how a listener's wish for the familiar or the new changes the params of their lines."""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ranking.params import INDEX, Params
from ranking.surfaces import CODES

DIALLED: Final = (CODES["taste"], CODES["discover"])
# param -> where it stands at 0, all familiar, and at 1, all new. Affinity is 0-1 on a line, so a novelty of 2 lets
# every artist that the listener does not play go before all that they play, and -2 the other way round.
ENDS: Final[Mapping[str, tuple[float, float]]] = {"novelty_weight": (-2.0, 2.0), "discovery_noise": (0.0, 1.0)}


def dialled(params: Params, source: NDArray[np.int64], discovery: NDArray[np.float64]) -> Params:
    """The params of lines, `[line, param]`, as each line's listener set the dial, `[line]`; nan: never said.

    At .5 they are the surface's own; from there they move in a straight line to either end, never the other way.
    """
    said = ~np.isnan(discovery)
    if not said.any():
        return params
    moved = np.flatnonzero(np.isin(source, DIALLED) & said)
    turned, params = 2 * discovery[moved] - 1, params.copy()
    for name, (familiar, new) in ENDS.items():
        own = params[moved, INDEX[name]]
        end = np.where(turned < 0, np.minimum(familiar, own), np.maximum(new, own))
        params[moved, INDEX[name]] = own + np.abs(turned) * (end - own)
    return params
