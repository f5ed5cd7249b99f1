"""The rules that the parts of a promotion book must keep together."""

from collections.abc import Iterable, Iterator

import numpy as np

from ranking.promotions.spec import ALL, MOST_CAMPAIGNS, MOST_FEEDS, MOST_SCORES, Campaign, Feed, Scores, Spec
from ranking.written import Violation

MAX_ITEM_ID = 255  # bytes


def mistakes(spec: Spec) -> Iterator[Violation]:
    """What breaks a rule, with its path, such as campaigns[3].items[7].score."""
    for name, count, most in (
        ("feeds", len(spec.feeds), MOST_FEEDS),
        ("campaigns", len(spec.campaigns), MOST_CAMPAIGNS),
        ("items of all campaigns", len(spec.scores), MOST_SCORES),
    ):
        if count > most:
            yield name, f"must be at most {most:,}"
    yield from _twice("feeds", (feed.id for feed in spec.feeds))
    yield from _twice("campaigns", (campaign.id for campaign in spec.campaigns))
    yield from _of_campaigns(spec.feeds, spec.campaigns)
    yield from _of_scores(spec.scores, len(spec.campaigns))


def _twice(name: str, ids: Iterable[str]) -> Iterator[Violation]:
    seen = set[str]()
    for number, one in enumerate(ids):
        if one in seen:
            yield f"{name}[{number}].id", f"{one} is there twice"
        seen.add(one)


def _of_campaigns(feeds: tuple[Feed, ...], campaigns: tuple[Campaign, ...]) -> Iterator[Violation]:
    known = {feed.id for feed in feeds}
    for number, one in enumerate(campaigns):
        if bool(one.feed) == bool(one.payer):
            yield f"campaigns[{number}].payer", "a campaign has either a feed or a payer of its own"
        elif one.feed and one.feed not in known:
            yield f"campaigns[{number}].feed", f"there is no feed {one.feed}"
        if one.until and one.until <= one.since:
            yield f"campaigns[{number}].until", "must be after since"


def _of_scores(scores: Scores, campaigns: int) -> Iterator[Violation]:
    inside = (scores.campaign >= 0) & (scores.campaign < campaigns)
    if not inside.all() or (np.diff(scores.campaign) < 0).any():
        yield "items", "are not those of the campaigns, in their order"
        return
    counts = np.bincount(scores.campaign, minlength=campaigns)
    first = np.concatenate(([0], np.cumsum(counts)))
    for number in np.flatnonzero(counts == 0).tolist():
        yield f"campaigns[{number}].items", "must not be empty"

    def path(score: int) -> str:
        campaign = int(scores.campaign[score])
        return f"campaigns[{campaign}].items[{score - int(first[campaign])}]"

    good = (scores.score >= 0) & (scores.score <= 1)  # not so for NaN
    for score in np.flatnonzero(~good).tolist():
        yield f"{path(score)}.score", "must be a number from 0 to 1"
    for score in np.flatnonzero((scores.segment < ALL) | (scores.segment > 31)).tolist():
        yield f"{path(score)}.segment", "must be from 0 to 31, or not be said"
    for score in np.flatnonzero((scores.size == 0) | (scores.size > MAX_ITEM_ID)).tolist():
        yield f"{path(score)}.item_id", f"must be 1-{MAX_ITEM_ID} bytes"
    yield from ((f"{path(score)}.item_id", what) for score, what in _repeated(scores))


def _repeated(scores: Scores) -> Iterator[tuple[int, str]]:
    """An item has one score in a campaign for all segments, or one for each of some."""
    order = np.lexsort((scores.segment, scores.item_key, scores.campaign))
    campaign, key, segment = scores.campaign[order], scores.item_key[order], scores.segment[order]
    same = (campaign[1:] == campaign[:-1]) & (key[1:] == key[:-1])
    for place in np.flatnonzero(same & (segment[1:] == segment[:-1])).tolist():
        yield int(order[place + 1]), "is there twice"
    for place in np.flatnonzero(same & (segment[:-1] == ALL) & (segment[1:] != ALL)).tolist():
        yield int(order[place + 1]), "has a score for all segments already"
