"""Between the contract and the core: a request is validated and becomes a query."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from features.errors import InvalidInput, PermissionRefused
from features.keys import hash64, item_keys
from features.markets import ISO_3166
from protos.home.v1 import home_pb2
from ranking.experiments.assignment import Assigner
from ranking.params import INDEX, Params
from ranking.session import PAUSE_S
from ranking.surfaces import ShelfSpec, Surface
from ranking.types import HomeQuery
from server.identity import Principal, Role
from server.page_tokens import PageToken, Reader, read_page_token
from server.signing import SigningKeys

MAX_IDS: Final = 1000
MAX_SHELVES: Final = 50
MAX_ITEMS: Final = 200
MAX_OVERRIDES: Final = 16
DEFAULT_SURFACE: Final = "home"
ONE_SHELF: Final = ("page_artist_cap", "promotion_share")
"""What is 0 on a page of one shelf: the page's cap would be another cap of the shelf, and who asks for more of a shelf
or brings candidates asks for no promotion."""

ALL_GIVEN: Final = (*ONE_SHELF, "artist_cap", "album_cap", "artist_gap", "diversity")
"""What is 0 for all that pass the filters, by score: no cap drops any, and there is nothing to choose."""

_USER_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_LOCALE: Final = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,4}")
_LOCAL_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?")

Request = home_pb2.GetHomeRequest | home_pb2.GetShelfRequest | home_pb2.RankItemsRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A request for the next part of a page: it changes nothing of it but what may be shown at all."""

    reader: Reader
    token: PageToken
    size: int  # how many shelves, or items of the one shelf; 0: all that are left
    market: str  # "": as the page's
    allow_explicit: bool | None  # None: as the page's


def to_query(
    request: home_pb2.GetHomeRequest,
    surfaces: Mapping[str, Surface],
    principal: Principal,
    assigner: Assigner | None,
    *,
    now: int,
) -> HomeQuery:
    """Validates a request for a page, from its top.

    Raises:
        InvalidInput: naming every wrong field.
        PermissionRefused: overrides from a caller without the role `force`.
    """
    surface = surfaces.get(request.surface or DEFAULT_SURFACE)
    wrong = [*_wrong_fields(request, surfaces, principal, assigner), *_wrong_size(request, MAX_SHELVES)]
    if wrong or surface is None:
        raise InvalidInput(*wrong)
    return _query(request, surface, assigner, now=now, shelves=request.page_size)


def to_shelf_query(
    request: home_pb2.GetShelfRequest,
    surfaces: Mapping[str, Surface],
    principal: Principal,
    assigner: Assigner | None,
    *,
    now: int,
) -> HomeQuery:
    """Validates a request for one shelf: a page of that shelf alone, of which as much is answered as asked.

    Raises:
        InvalidInput: naming every wrong field.
        PermissionRefused: overrides from a caller without the role `force`.
    """
    surface, spec = _shelf(request, surfaces)
    wrong = [*_wrong_fields(request, surfaces, principal, assigner), *_wrong_size(request, MAX_ITEMS)]
    wrong += _wrong_shelf(surface, spec)
    if wrong or surface is None or spec is None:
        raise InvalidInput(*wrong)
    params = _without(spec.params, ONE_SHELF)
    longer = replace(spec, size=MAX_ITEMS, minimum=1, depth=max(spec.depth, 2 * MAX_ITEMS), params=params)
    alone = replace(surface, shelves=(longer,), params=_without(surface.params, ONE_SHELF))
    query = _query(request, alone, assigner, now=now, shelves=0)
    return replace(query, items=request.page_size or spec.size, fixed=_fixed(ONE_SHELF))


def to_turn(
    request: home_pb2.GetHomeRequest | home_pb2.GetShelfRequest,
    surfaces: Mapping[str, Surface],
    principal: Principal,
    assigner: Assigner | None,
    keys: SigningKeys,
) -> Turn:
    """Validates a request with a page token; its overrides are not looked at: experiments may have ended meanwhile.

    Raises:
        InvalidInput: naming every wrong field.
        PermissionRefused: overrides from a caller without the role `force`.
    """
    one = isinstance(request, home_pb2.GetShelfRequest)
    shelf_id = request.shelf_id if isinstance(request, home_pb2.GetShelfRequest) else ""
    reader = Reader(user_id=request.user_id, surface=request.surface or DEFAULT_SURFACE, shelf_id=shelf_id)
    token = read_page_token(request.page_token, reader, keys)
    wrong = list(_wrong_fields(request, surfaces, principal, assigner, turned=token is not None))
    wrong += _wrong_size(request, MAX_ITEMS if one else MAX_SHELVES)
    size = request.page_size
    if isinstance(request, home_pb2.GetShelfRequest):
        surface, spec = _shelf(request, surfaces)
        wrong += _wrong_shelf(surface, spec)
        size = size or (MAX_ITEMS if spec is None else spec.size)
    if wrong or token is None:
        raise InvalidInput(*wrong)
    context = request.context
    explicit = context.allow_explicit if context.HasField("allow_explicit") else None
    return Turn(reader=reader, token=token, size=size, market=context.market, allow_explicit=explicit)


def to_rank_query(
    request: home_pb2.RankItemsRequest,
    surfaces: Mapping[str, Surface],
    principal: Principal,
    assigner: Assigner | None,
    *,
    now: int,
) -> HomeQuery:
    """Validates a request to rank the caller's own candidates: a page of one line, all of it traced.

    Raises:
        InvalidInput: naming every wrong field.
        PermissionRefused: overrides from a caller without the role `force`.
    """
    surface = surfaces.get(request.surface or DEFAULT_SURFACE)
    wrong = list(_wrong_fields(request, surfaces, principal, assigner))
    wrong += wrong_ids("item_ids", request.item_ids)
    if not request.item_ids:
        wrong.append(("item_ids", "must name at least one item"))
    if len(request.query_item_id.encode()) > 128:
        wrong.append(("query_item_id", "must be at most 128 bytes"))
    if not 0 <= request.page_size <= MAX_IDS:
        wrong.append(("page_size", f"must be 0 to {MAX_IDS}; 0 asks for all that pass"))
    if wrong or surface is None:
        raise InvalidInput(*wrong)
    count = len(request.item_ids)
    none = ONE_SHELF if request.page_size else ALL_GIVEN
    params = _without(surface.params, none)
    size = request.page_size or count
    spec = ShelfSpec(
        id="given",
        source="given",
        titles={"en": ""},
        size=size,
        minimum=1,
        depth=max(count, size),
        params=params,
        reasons=surface.reasons,
        item_keys={},
    )
    page = _query(request, replace(surface, shelves=(spec,), params=params), assigner, now=now, shelves=0)
    near = hash64(request.query_item_id) if request.query_item_id else 0
    return replace(page, given=item_keys(request.item_ids), near=near, traced=True, fixed=_fixed(none))


def _without(params: Params, names: Iterable[str]) -> Params:
    """Params with some at 0."""
    changed = params.copy()
    changed[[INDEX[name] for name in names]] = 0
    return changed


def _fixed(names: Iterable[str]) -> frozenset[tuple[str, int]]:
    return frozenset(("", INDEX[name]) for name in names)


def _query(request: Request, surface: Surface, assigner: Assigner | None, *, now: int, shelves: int) -> HomeQuery:
    context = request.context
    wanted = ((one.experiment, one.arm) for one in request.experiment_overrides)
    forced = [one for pair in wanted if assigner is not None and (one := assigner.forced(*pair)) is not None]
    return HomeQuery(
        user_id=request.user_id,
        surface=surface,
        now=now,
        market=context.market,
        allow_explicit=context.allow_explicit if context.HasField("allow_explicit") else None,
        excluded=item_keys(request.exclude_item_ids),
        hidden=item_keys(request.hidden_ids) if request.hidden_ids else None,
        shelves=shelves,
        session=hash64(request.session_id) & 0xFFFFFFFF if request.session_id else 0,
        seed=hash64(f"{request.user_id}|{request.session_id or now // PAUSE_S}|{surface.name}"),
        device=context.device,
        locale=context.locale,
        assigner=assigner,
        forced={one.layer: one for one in forced},
    )


def _shelf(
    request: home_pb2.GetShelfRequest, surfaces: Mapping[str, Surface]
) -> tuple[Surface | None, ShelfSpec | None]:
    """The surface and the shelf that a request names; None where there is none."""
    surface = surfaces.get(request.surface or DEFAULT_SURFACE)
    shelves = () if surface is None else surface.shelves
    return surface, next((shelf for shelf in shelves if shelf.id == request.shelf_id), None)


def _wrong_shelf(surface: Surface | None, spec: ShelfSpec | None) -> Iterable[tuple[str, str]]:
    if surface is not None and spec is None:
        yield "shelf_id", f"unknown; of this surface are {', '.join(shelf.id for shelf in surface.shelves)}"


def _wrong_size(request: home_pb2.GetHomeRequest | home_pb2.GetShelfRequest, most: int) -> Iterable[tuple[str, str]]:
    if not 0 <= request.page_size <= most:
        zero = "all shelves" if isinstance(request, home_pb2.GetHomeRequest) else "the shelf's own size"
        yield "page_size", f"must be 0 to {most}; 0 asks for {zero}"


def _wrong_fields(
    request: Request,
    surfaces: Mapping[str, Surface],
    principal: Principal,
    assigner: Assigner | None,
    *,
    turned: bool = False,
) -> Iterable[tuple[str, str]]:
    """What is wrong with the fields that all requests have; `turned` where the page token is good."""
    if request.experiment_overrides and Role.FORCE not in principal.roles:
        raise PermissionRefused(f"experiment_overrides: needs the role {Role.FORCE.value}")
    context = request.context
    near = isinstance(request, home_pb2.RankItemsRequest) and request.query_item_id
    if request.user_id or not near:
        yield from wrong_user_id(request.user_id)
    if request.session_id and not _USER_ID.fullmatch(request.session_id):
        yield "session_id", "must be at most 128 of [A-Za-z0-9_.-]"
    if context.market and context.market not in ISO_3166:
        yield "context.market", "must be an ISO 3166-1 alpha-2 code in upper case, such as GB"
    if context.locale and not _LOCALE.fullmatch(context.locale):
        yield "context.locale", "must be a BCP 47 tag, such as en-GB"
    if len(context.device.encode()) > 64:
        yield "context.device", "must be at most 64 bytes"
    if context.local_time and not _is_local_time(context.local_time):
        yield "context.local_time", "must be ISO 8601, such as 2026-11-20T08:30"
    if (request.surface or DEFAULT_SURFACE) not in surfaces:
        yield "surface", f"unknown; known are {', '.join(sorted(surfaces))}"
    if not isinstance(request, home_pb2.RankItemsRequest) and request.page_token and not turned:
        yield "page_token", "is no token of this service for this listener, surface and shelf"
    yield from wrong_ids("exclude_item_ids", request.exclude_item_ids)
    yield from wrong_ids("hidden_ids", request.hidden_ids)
    if not turned:
        yield from _wrong_overrides(request.experiment_overrides, assigner)


def _wrong_overrides(
    overrides: Sequence[home_pb2.ExperimentOverride], assigner: Assigner | None
) -> Iterable[tuple[str, str]]:
    if len(overrides) > MAX_OVERRIDES:
        yield "experiment_overrides", f"must be at most {MAX_OVERRIDES}"
    layers: set[str] = set()
    for number, one in enumerate(overrides[:MAX_OVERRIDES]):
        path = f"experiment_overrides[{number}]"
        if assigner is None or one.experiment not in assigner.experiments:
            yield f"{path}.experiment", "names no running experiment"
        elif (found := assigner.forced(one.experiment, one.arm)) is None:
            yield f"{path}.arm", "names no arm of the experiment"
        elif found.layer in layers:
            yield f"{path}.experiment", "is of the layer of one before: a listener is in one of a layer"
        else:
            layers.add(found.layer)


def _is_local_time(text: str) -> bool:
    try:
        return bool(_LOCAL_TIME.fullmatch(text) and datetime.fromisoformat(text))
    except ValueError:  # a day or an hour that no calendar or clock has
        return False


def wrong_user_id(user_id: str) -> Iterable[tuple[str, str]]:
    """What is wrong with the id of a listener."""
    if not _USER_ID.fullmatch(user_id):
        yield "user_id", "must be 1-128 of [A-Za-z0-9_.-]"


def wrong_ids(field: str, ids: Sequence[str]) -> Iterable[tuple[str, str]]:
    """What is wrong with a list of ids of items or artists."""
    if len(ids) > MAX_IDS:
        yield field, f"must be at most {MAX_IDS} ids"
        return
    for number, item_id in enumerate(ids):
        if not 1 <= len(item_id.encode()) <= 128:
            yield f"{field}[{number}]", "must be 1-128 bytes"
