"""Diversification: each method against a plain greedy one, caps and spacing, neutral strengths, lines alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
import pytest
from numpy.typing import NDArray

from ranking.diversify import Genres, Pool, Vectors, by_score, calibrated, dpp, mmr

Rng = np.random.Generator
Picks = NDArray[np.int64]  # [line, pick]; -1: the line has no more
Strength = NDArray[np.float64]
Values = Callable[[Sequence[int], Sequence[int]], Sequence[float]]  # (picked, open) -> value of each open candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """What each line may hold of one artist and one album."""

    artist: NDArray[np.uint64]  # [line, candidate]
    album: NDArray[np.uint64]  # [line, candidate]
    artist_cap: NDArray[np.int64]  # [line]
    album_cap: NDArray[np.int64]  # [line]
    gap: NDArray[np.int64]  # [line]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """The candidates' genres, and the mix that each line should come near."""

    index: NDArray[np.int16]  # [line, candidate, 8]
    weight: NDArray[np.float64]  # [line, candidate, 8]
    target: NDArray[np.float32]  # [line, genre]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What the methods choose from, for several lines."""

    relevance: NDArray[np.float32]
    unit: NDArray[np.float32]
    usable: NDArray[np.bool_]
    genres: Mix
    caps: Caps

    def __len__(self) -> int:
        """How many lines."""
        return len(self.relevance)

    def usable_at(self, line: int) -> NDArray[np.int64]:
        """The candidates of a line that may be chosen."""
        return np.flatnonzero(self.usable[line] & np.isfinite(self.relevance[line]))

    def pool(self, line: int, caps: Caps | None) -> Pool:
        """A line's usable candidates."""
        at = self.usable_at(line)
        relevance = self.relevance[line, at].astype(np.float64)
        if caps is None:
            nobody = np.zeros(len(at), np.uint64)
            return Pool(relevance, nobody, nobody, 0, 0, 0)
        most = (int(part[line]) for part in (caps.artist_cap, caps.album_cap, caps.gap))
        return Pool(relevance, caps.artist[line, at], caps.album[line, at], *most)

    def vectors(self, line: int) -> Vectors:
        """Where the vectors of a line's usable candidates are."""
        return Vectors(self.unit[line], self.usable_at(line))

    def units(self, line: int) -> NDArray[np.float32]:
        """The vectors of a line's usable candidates, candidates last."""
        return np.ascontiguousarray(self.unit[line, self.usable_at(line)].T)

    def mix(self, line: int) -> Genres:
        """The genres of a line's usable candidates."""
        at = self.usable_at(line)
        return Genres(self.genres.index[line, at], self.genres.weight[line, at], self.genres.target[line])


def draw(
    rng: Rng, *, lines: int = 50, width: int = 14, dimension: int = 6, kinds: int = 5, tied: bool = False
) -> World:
    """A random world: scores fall, a fifth is unusable; `tied`: few distinct scores, and every vector many times."""
    relevance = -np.sort(-rng.random((lines, width)), axis=1)
    unit = rng.standard_normal((lines, width, dimension))
    if tied:
        relevance, unit = np.round(relevance, 1), np.tile(unit[:, :10], (1, width // 10 + 1, 1))[:, :width]
    unit /= np.linalg.norm(unit, axis=2, keepdims=True)
    index = rng.permuted(np.tile(np.arange(max(kinds, 8)), (lines, width, 1)), axis=2)[:, :, :8]
    index[(np.arange(8) >= rng.integers(0, 5, (lines, width, 1))) | (index >= kinds)] = -1
    weight = np.where(index >= 0, rng.random(index.shape) + 0.1, 0)
    weight /= np.maximum(weight.sum(axis=2, keepdims=True), 1e-9)
    target = rng.dirichlet(np.ones(kinds), lines) * (rng.random((lines, kinds)) < 0.8)
    return World(
        relevance=relevance.astype(np.float32),
        unit=unit.astype(np.float32),
        usable=rng.random((lines, width)) < 0.8,
        genres=Mix(index=index.astype(np.int16), weight=weight, target=target.astype(np.float32)),
        caps=Caps(
            artist=rng.integers(0, 6, (lines, width)).astype(np.uint64) << np.uint64(61),
            album=rng.integers(0, 12, (lines, width)).astype(np.uint64),
            artist_cap=rng.integers(0, 4, lines),
            album_cap=rng.integers(0, 3, lines),
            gap=rng.integers(0, 4, lines),
        ),
    )


@dataclass(frozen=True, slots=True)
class Method:
    """A way to choose, its neutral strength, and strengths to try."""

    choose: Callable[[World, Strength, int, Caps | None], Picks]
    neutral: float
    strengths: tuple[float, ...]


def each_line(choose: Callable[[World, int, float, Pool, NDArray[np.int64]], object]) -> Callable[..., Picks]:
    """A choice for every line of a world, as places among all its candidates."""

    def chosen(world: World, strength: Strength, picks: int, caps: Caps | None) -> Picks:
        found = np.full((len(world), picks), -1, np.int64)
        for line in range(len(world)):
            own = np.full(picks, -1, np.int64)
            choose(world, line, float(strength[line]), world.pool(line, caps), own)
            found[line, own >= 0] = world.usable_at(line)[own[own >= 0]]
        return found

    return chosen


METHODS: Final[Mapping[str, Method]] = {
    "by_score": Method(each_line(lambda _w, _l, _s, pool, picks: by_score(pool, picks)), 0, (0,)),
    "mmr": Method(
        each_line(lambda w, n, s, pool, picks: mmr(pool, w.vectors(n), s, len(picks), picks)), 1, (0, 0.3, 0.8, 1)
    ),
    "dpp": Method(
        each_line(lambda w, n, s, pool, picks: dpp(pool, w.units(n), s, len(picks), picks)),
        np.inf,
        (0.5, 2, 16, 60, np.inf),
    ),
    "calibrated": Method(
        each_line(lambda w, n, s, pool, picks: calibrated(pool, w.mix(n), s, len(picks), picks)), 0, (0, 0.3, 0.9, 1)
    ),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def allowed(caps: Caps | None, line: int, picked: Sequence[int], candidate: int) -> bool:
    """Whether a candidate may follow the picks, told plainly."""
    if caps is None:
        return True
    artist, album = caps.artist[line].tolist(), caps.album[line].tolist()
    of_artist = [place for place, pick in enumerate(picked) if artist[candidate] and artist[pick] == artist[candidate]]
    of_album = [pick for pick in picked if album[candidate] and album[pick] == album[candidate]]
    if caps.artist_cap[line] and len(of_artist) >= max(1, caps.artist_cap[line]):
        return False
    if caps.album_cap[line] and len(of_album) >= max(1, caps.album_cap[line]):
        return False
    return all(len(picked) - place > caps.gap[line] for place in of_artist)


def greedy(world: World, line: int, picks: int, caps: Caps | None, values: Values) -> list[int]:
    """Picks the best of what is allowed, one at a time, and fills up with -1."""
    picked: list[int] = []
    while len(picked) < picks:
        rest = [int(one) for one in np.flatnonzero(world.usable[line]) if one not in picked]
        rest = [one for one in rest if allowed(caps, line, picked, one)]
        if not rest:
            break
        value = values(picked, rest)
        picked.append(rest[int(np.argmax(value))])
    return picked + [-1] * (picks - len(picked))


def plain_mmr(world: World, line: int, strength: float) -> Values:
    """Marginal relevance by its definition."""
    unit, relevance = world.unit[line].astype(float), world.relevance[line].astype(float)

    def values(picked: Sequence[int], rest: Sequence[int]) -> list[float]:
        near = [max([0.0, *(float(unit[one] @ unit[pick]) for pick in picked)]) for one in rest]
        return [strength * relevance[one] - (1 - strength) * cos for one, cos in zip(rest, near, strict=True)]

    return values


def kernel(world: World, line: int, theta: float) -> NDArray[np.float64]:
    """A line's L = B B', its best candidate's weight 1."""
    relevance, unit = world.relevance[line].astype(float), world.unit[line].astype(float)
    rows = np.exp(theta / 2 * (relevance - relevance[world.usable[line]].max(initial=-9)))[:, None] * unit
    return np.asarray(rows @ rows.T)


def plain_dpp(world: World, line: int, theta: float) -> Values:
    """The determinant that each candidate makes of the picks, by relevance where nothing is new any more."""
    relevance = world.relevance[line].astype(float).tolist()
    if np.isinf(theta):
        return lambda _, rest: [relevance[one] for one in rest]
    similar = kernel(world, line, theta)
    spanning: list[int] = []

    def values(picked: Sequence[int], rest: Sequence[int]) -> list[float]:
        if picked and gain(picked[-1]) > 0:
            spanning.append(picked[-1])
        gains = [gain(one) for one in rest]
        return gains if max(gains) >= 1e-10 else [relevance[one] for one in rest]

    def gain(one: int) -> float:
        both = [*spanning, one]
        added = np.linalg.det(similar[np.ix_(both, both)]) / np.linalg.det(similar[np.ix_(spanning, spanning)])
        return float(added) if added >= 1e-6 * similar[one, one] else 0.0

    return values


def plain_calibrated(world: World, line: int, strength: float) -> Values:
    """Scores less the divergence of the whole choice, over all genres."""
    relevance, target = world.relevance[line].astype(float), world.genres.target[line].astype(float)
    shares = np.zeros((len(relevance), len(target)))
    for one, slot in np.argwhere(world.genres.index[line] >= 0):
        shares[one, world.genres.index[line, one, slot]] = world.genres.weight[line, one, slot]
    held = target > 0

    def values(picked: Sequence[int], rest: Sequence[int]) -> list[float]:
        found = []
        for one in rest:
            both = [*picked, one]
            mix = 0.99 * shares[both].mean(axis=0) + 0.01 * target
            divergence = float(np.sum(target[held] * np.log(target[held] / mix[held])))
            found.append((1 - strength) * float(relevance[both].sum()) - strength * divergence)
        return found

    return values


PLAIN: Final[Mapping[str, Callable[[World, int, float], Values]]] = {
    "by_score": lambda world, line, _: plain_mmr(world, line, 1),
    "mmr": plain_mmr,
    "dpp": plain_dpp,
    "calibrated": plain_calibrated,
}


@pytest.mark.parametrize("capped", [False, True], ids=["free", "capped"])
@pytest.mark.parametrize(("width", "dimension", "kinds"), [(5, 3, 3), (14, 8, 5), (17, 4, 20), (33, 64, 8)])
@pytest.mark.parametrize("name", METHODS)
def test_equals_the_plain_greedy_choice(name: str, width: int, dimension: int, kinds: int, *, capped: bool) -> None:
    """50 lines of mixed strengths, for each of four shapes with and without caps, are chosen as by definition."""
    rng = np.random.default_rng(width)
    world = draw(rng, width=width, dimension=dimension, kinds=kinds)
    strength = rng.choice(METHODS[name].strengths, len(world)).astype(float)
    caps = world.caps if capped else None
    chosen = METHODS[name].choose(world, strength, 6, caps)
    for line, picks in enumerate(chosen.tolist()):
        expected = greedy(world, line, 6, caps, PLAIN[name](world, line, strength[line]))
        assert picks == expected, f"line {line}, strength {strength[line]}"


@every_method
def test_the_neutral_strength_is_the_order_of_scores(method: Method) -> None:
    """Neutral choices are the first usable ones by score, ties to the lower index, to the last bit."""
    for seed in range(60):
        world = draw(np.random.default_rng(seed), lines=8, width=50, tied=seed % 2 == 1)
        chosen = method.choose(world, np.full(8, method.neutral), 12, None)
        ranked = np.argsort(np.where(world.usable, -world.relevance, np.inf), axis=1, kind="stable")
        assert np.array_equal(chosen, ranked[:, :12]), f"seed {seed}"


@every_method
def test_caps_and_spacing_hold_and_a_line_ends_rather_than_break_them(method: Method) -> None:
    """On 60 random worlds no pick breaks a cap, is unusable or repeated, and a line ends only when nothing is left."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        world = draw(rng, lines=8, width=40, tied=seed % 2 == 1)
        strength = rng.choice(method.strengths, len(world)).astype(float)
        for line, picks in enumerate(method.choose(world, strength, 15, world.caps).tolist()):
            real = [pick for pick in picks if pick >= 0]
            assert picks == real + [-1] * (15 - len(real))
            assert len(set(real)) == len(real)
            assert world.usable[line, real].all()
            assert all(allowed(world.caps, line, real[:place], pick) for place, pick in enumerate(real))
            if len(real) < 15:
                rest = set(np.flatnonzero(world.usable[line]).tolist()) - set(real)
                assert not any(allowed(world.caps, line, real, one) for one in rest), f"seed {seed}, line {line}"


@every_method
@pytest.mark.parametrize(("cap", "gap", "length"), [(2, 0, 2), (3, 1, 1), (0, 0, 12), (0, 5, 1), (99, 0, 12)])
def test_one_artist_fills_no_more_than_its_cap(method: Method, cap: int, gap: int, length: int) -> None:
    """Where all candidates are of one artist, a line ends at the cap, or after one pick where spacing is asked."""
    world = draw(np.random.default_rng(7), lines=3, width=40)
    caps = Caps(
        artist=np.full(world.usable.shape, 2**64 - 1, np.uint64),
        album=np.zeros(world.usable.shape, np.uint64),
        artist_cap=np.full(3, cap),
        album_cap=np.full(3, 1),
        gap=np.full(3, gap),
    )
    chosen = method.choose(world, np.full(3, method.strengths[-1], float), 12, caps)
    assert ((chosen >= 0).sum(axis=1) == length).all()


@every_method
def test_nothing_to_choose_from_is_nothing_chosen(method: Method) -> None:
    """A line without a usable candidate stays empty."""
    world = draw(np.random.default_rng(3), lines=2)
    world.usable[:] = False
    assert (method.choose(world, np.full(2, method.strengths[-1], float), 4, world.caps) == -1).all()


@every_method
def test_the_first_picks_of_a_longer_choice_are_the_shorter_choice(method: Method) -> None:
    """A line of 5 is the beginning of the same line of 12."""
    world = draw(np.random.default_rng(11), width=40)
    strength = np.full(len(world), method.strengths[1 % len(method.strengths)], float)
    long, short = (method.choose(world, strength, picks, world.caps) for picks in (12, 5))
    assert np.array_equal(long[:, :5], short)


def test_dpp_comes_near_the_best_determinant() -> None:
    """On 60 lines of 14 the greedy determinant is 0.99 of the best of all choices of 4 on average, 0.9 at least."""
    world = draw(np.random.default_rng(5), lines=60)
    world.usable[:] = True
    chosen = METHODS["dpp"].choose(world, np.full(60, 16.0), 4, None)
    ratios = []
    for line, picks in enumerate(chosen):
        similar = kernel(world, line, 16)
        best = max(np.linalg.det(similar[np.ix_(some, some)]) for some in combinations(range(14), 4))
        ratios.append(np.linalg.det(similar[np.ix_(picks, picks)]) / best)
    assert np.mean(ratios) >= 0.99
    assert min(ratios) >= 0.9


def test_dpp_of_no_relevance_begins_with_the_best_score() -> None:
    """At theta 0 all first picks are worth the same, so the best by score is first, whatever the norms' last bits."""
    world = draw(np.random.default_rng(13), width=40, dimension=64)
    chosen = METHODS["dpp"].choose(world, np.zeros(len(world)), 5, None)
    assert np.array_equal(chosen[:, 0], world.usable.argmax(axis=1))


def test_dpp_fills_up_by_relevance_where_nothing_weighs() -> None:
    """What adds less than 1e-10 of the best comes by score, even if something else is more different."""
    nobody = np.zeros(3, np.uint64)
    pool = Pool(np.array([1, 0.5, 0.499]), nobody, nobody, 0, 0, 0)
    unit = np.ascontiguousarray(np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32).T)
    for theta, wanted in ((60.0, [0, 1, 2]), (16.0, [0, 2, 1])):
        picks = np.full(3, -1, np.int64)
        dpp(pool, unit, theta, 3, picks)
        assert picks.tolist() == wanted


def test_dpp_counts_a_duplicate_as_nothing_new() -> None:
    """Of 40 candidates with 10 distinct vectors the first 10 picks differ, and the rest come by score."""
    world = draw(np.random.default_rng(9), lines=20, width=40, dimension=64, tied=True)
    world.usable[:] = True
    chosen = METHODS["dpp"].choose(world, np.full(20, 4.0), 20, None)
    assert all(len(set(picks)) == 10 for picks in (chosen[:, :10] % 10).tolist())
    for line, picks in enumerate(chosen.tolist()):
        assert (
            picks[10:]
            == sorted(set(range(40)) - set(picks[:10]), key=lambda one: (-world.relevance[line, one], one))[:10]
        )
