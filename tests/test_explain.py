"""RankItems and ExplainHome: nothing is lost, every fate is told, and a what-if is a page."""

from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from features.snapshot import Snapshot
from protos.home.v1 import home_pb2, home_pb2_grpc
from ranking.home import STAGES
from ranking.types import Fate
from server.codec import item_id_of
from server.fates import SENTENCES
from tests.conftest import Served
from tests.test_home import read

if TYPE_CHECKING:
    from protos.home.v1.home_pb2_grpc import HomeServiceAsyncStub


def stub(served: Served) -> "HomeServiceAsyncStub":
    """The service, on the served channel."""
    return home_pb2_grpc.HomeServiceStub(served.channel)


async def rank(served: Served, **fields: Any) -> home_pb2.RankItemsResponse:
    """Candidates, ranked for the development token's holder."""
    return await stub(served).RankItems(home_pb2.RankItemsRequest(**fields), metadata=served.metadata)


async def explain(served: Served, item_id: str = "", **fields: Any) -> home_pb2.ExplainHomeResponse:
    """A page, explained."""
    asked = {"user_id": "u0000001", **{name: value for name, value in fields.items() if name != "set_params"}}
    request = home_pb2.ExplainHomeRequest(
        request=home_pb2.GetHomeRequest(**asked), item_id=item_id, set_params=fields.get("set_params", {})
    )
    return await stub(served).ExplainHome(request, metadata=served.metadata)


def some_ids(snapshot: Snapshot, count: int, seed: int = 1) -> list[str]:
    """Random items of the catalogue."""
    rows = np.random.default_rng(seed).choice(snapshot.manifest.items, count, replace=False)
    return [item_id_of(snapshot, int(row)) for row in rows]


async def test_no_candidate_is_lost(standing: Served, snapshot: Snapshot) -> None:
    """What is ranked and what is dropped are together what was brought, each once, with a sentence for what fell."""
    ids = some_ids(snapshot, 300)
    found = await rank(standing, user_id="u0000001", item_ids=[*ids, *ids[:5], "no-such-item"])
    ranked, fallen = [item.item_id for item in found.items], [one.item_id for one in found.dropped]
    assert sorted(ranked + fallen) == sorted([*ids, "no-such-item"])
    assert all(one.fate and one.stage and one.text for one in found.dropped)
    assert {one.fate for one in found.dropped if one.item_id == "no-such-item"} == {"unknown"}


async def test_candidates_are_ranked_by_taste(standing: Served, snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """By inner product with the listener's vector; the best only, where a number is asked."""
    ids = some_ids(snapshot, 200)
    found = await rank(standing, user_id="u0000001", item_ids=ids)
    rows = {item_id_of(snapshot, row): row for row in range(snapshot.manifest.items)}
    own = read(snapshot, [records["u0000001"]]).vectors[0]
    affinity = [float(snapshot.columns["vector"][rows[item.item_id]] @ own) for item in found.items]
    assert affinity == sorted(affinity, reverse=True)
    best = await rank(standing, user_id="u0000001", item_ids=ids, page_size=10)
    assert len(best.items) <= 10
    assert {item.item_id for item in best.items} <= {item.item_id for item in found.items}


async def test_candidates_are_ranked_by_nearness_to_an_item(standing: Served, snapshot: Snapshot) -> None:
    """By cosine to the query item; no listener is needed."""
    ids = some_ids(snapshot, 200)
    found = await rank(standing, query_item_id=ids[0], item_ids=ids)
    rows = {item_id_of(snapshot, row): row for row in range(snapshot.manifest.items)}
    vectors = np.asarray(snapshot.columns["vector"], np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = [float(unit[rows[item.item_id]] @ unit[rows[ids[0]]]) for item in found.items]
    assert cosines == sorted(cosines, reverse=True)
    assert ids[0] not in {item.item_id for item in found.items} or cosines[0] == pytest.approx(1.0)
    reason = found.items[0].reason
    assert reason.code == home_pb2.REASON_CODE_SIMILAR
    assert reason.text == f"Similar to {reason.args[0]}"


async def test_ranked_candidates_say_what_they_are_ranked_by(standing: Served, snapshot: Snapshot) -> None:
    """By a listener's taste; where nothing is known of the listener by popularity; in the request's locale."""
    ids, german = some_ids(snapshot, 50), home_pb2.Context(locale="de")
    known = await rank(standing, user_id="u0000001", item_ids=ids, context=german)
    assert {item.reason.text for item in known.items} == {"Nach deinem Geschmack"}
    stranger = await rank(standing, user_id="nobody", item_ids=ids)
    assert {item.reason.code for item in stranger.items} == {home_pb2.REASON_CODE_POPULAR_IN_MARKET}


@pytest.mark.parametrize(
    "fields",
    [
        {"item_ids": ["t1"]},
        {"user_id": "u1"},
        {"user_id": "u1", "item_ids": ["t"] * 1001},
        {"user_id": "u1", "item_ids": ["t1"], "page_size": 1001},
        {"user_id": "u1", "item_ids": ["t1"], "query_item_id": "x" * 129},
    ],
)
async def test_wrong_candidates_are_refused(standing: Served, fields: dict[str, Any]) -> None:
    """No listener and no query item, no candidates, too many, a number out of range, an id too long."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await rank(standing, **fields)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_every_fate_has_a_sentence() -> None:
    """A fate without words would leave an engineer without an answer."""
    assert set(SENTENCES) == set(Fate)


async def test_an_item_is_told_its_fate_on_every_shelf(standing: Served, snapshot: Snapshot) -> None:
    """From a page to the sentence, whether it is shown, in reserve, excluded, hidden, played, capped or elsewhere."""
    told: dict[str, str] = {}
    page = (await explain(standing)).response
    shown = [item.item_id for shelf in page.shelves for item in shelf.items]
    everything = some_ids(snapshot, 150, seed=2)
    cases: list[tuple[str, dict[str, Any]]] = [
        *((one, {}) for one in (*shown, *everything)),
        (shown[0], {"exclude_item_ids": [shown[0]]}),
        (shown[1], {"hidden_ids": [shown[1]]}),
        *((one, {"context": home_pb2.Context(market="ZW", allow_explicit=False)}) for one in everything),
        ("no-such-item", {}),
    ]
    for item_id, fields in cases:
        for one in (await explain(standing, item_id, **fields)).fates:
            told[one.fate] = one.text
            assert one.text
            assert one.stage
    wanted = {"shown", "kept", "excluded", "hidden", "played", "not_retrieved", "unknown", "off_genre", "duplicate"}
    assert wanted <= set(told)
    assert {"capped", "market", "explicit"} <= set(told)
    assert "full before its turn" in told["kept"]


async def test_stages_add_up_and_scores_are_their_terms(standing: Served) -> None:
    """The counts of fates are those of the page; the terms of each shown item add up to its score."""
    found = await explain(standing)
    assert tuple(stage.stage for stage in found.stages) == STAGES
    shown = sum(len(shelf.items) for shelf in found.response.shelves)
    (layout,) = (stage for stage in found.stages if stage.stage == "layout")
    assert layout.fates["shown"] == shown == len(found.scores)
    by_place = {(shelf.id, item.item_id): item.score for shelf in found.response.shelves for item in shelf.items}
    for one in found.scores:
        assert sum(one.terms.values()) == pytest.approx(by_place[one.shelf_id, one.item_id], abs=1e-6)
    origins = {value.name: (value.value, value.origin) for value in found.params}
    assert origins["discover.popularity_weight"] == ("-0.3", "shelf")
    assert origins["diversity"] == ("mmr", "preset full")
    assert origins["freshness_weight"] == ("0", "default")


async def test_a_what_if_is_the_page_under_other_params(standing: Served) -> None:
    """The page stands beside the one that other params would make; an unknown param is refused by name."""
    found = await explain(standing, set_params={"popularity_weight": "-2", "diversity": "mmr"})
    before = [[item.item_id for item in shelf.items] for shelf in found.response.shelves]
    after = [[item.item_id for item in shelf.items] for shelf in found.what_if.shelves]
    assert before != after
    assert not (await explain(standing)).what_if.shelves
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await explain(standing, set_params={"no_such_param": "1"})
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no_such_param is no param" in (error.value.details() or "")
