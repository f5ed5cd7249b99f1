"""Which arms each request is served with, and the params that they override."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from features.listeners import Listeners
from ranking.experiments.assignment import Assigner, Audience
from ranking.params import Params
from ranking.types import HomeQuery


def assign(queries: tuple[HomeQuery, ...], listeners: Listeners) -> tuple[HomeQuery, ...]:
    """The queries, each with its arms, by the book that was in force when it came."""
    segments = listeners.segment.tolist()
    return tuple(
        query if query.assigner is None else _assigned(query, query.assigner, market, segment)
        for query, market, segment in zip(queries, listeners.market, segments, strict=True)
    )


def page_params(queries: tuple[HomeQuery, ...]) -> Params:
    """The params of each page, `[query, param]`: its surface's, and over them those of its arms."""
    params = np.array([query.surface.params for query in queries])
    for number, query in enumerate(queries):
        for place, value in overridden(query):
            params[number, place] = value
    return params


def overridden(query: HomeQuery) -> Iterator[tuple[int, float]]:
    """The params that a query's arms override: place and value."""
    for assignment in query.assignments:
        for place, value in assignment.overrides:
            if ("", place) not in query.fixed:
                yield place, value


def _assigned(query: HomeQuery, assigner: Assigner, market: str, segment: int) -> HomeQuery:
    audience = Audience(market=query.market or market, segment=segment, device=query.device, locale=query.locale)
    return replace(query, assignments=assigner.assign(query.user_id, audience, query.forced))
