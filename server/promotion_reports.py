"""What the commands of promoters report: as tables for people, as JSON for programs."""

import json
from collections.abc import Iterable

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from protos.promotions.v1 import promotions_pb2
from server.face import console, table


def applied(response: promotions_pb2.ApplyBookResponse, *, before: str, check: bool, as_json: bool) -> None:
    """The book that was applied, or would be."""
    if as_json:
        _print(response)
        return
    version = response.book.version
    if check:
        said = "it may be applied; nothing was changed"
    elif version == before:
        said = f"book {version[:12]} is in force already; its feeds are confirmed"
    else:
        said = f"book {version[:12]} is in force; workers follow within 2 s"
    console().print(_campaigns(response.campaigns))
    console().print(said, highlight=False)


def listed(response: promotions_pb2.ListPromotionsResponse, *, as_json: bool) -> None:
    """The feeds and campaigns in force."""
    if as_json:
        _print(response)
        return
    out = console()
    book, snapshot = (version[:12] or "none" for version in (response.version, response.snapshot_version))
    out.print(f"book {book} · items looked up in snapshot {snapshot}", highlight=False)
    rows = [
        (
            one.id,
            one.payer,
            _when(one.confirmed_at) if one.HasField("confirmed_at") else "never",
            f"{one.freshness:.0%}",
        )
        for one in response.feeds
    ]
    out.print(table("feeds", ("feed", "payer", "confirmed", "counts"), rows))
    out.print(_campaigns(response.campaigns))


def stats(response: promotions_pb2.GetStatsResponse, *, as_json: bool) -> None:
    """What came of campaigns, by day."""
    if as_json:
        _print(response)
        return
    rows = [
        (
            one.day,
            one.campaign,
            f"{one.eligible_pages:,}",
            f"{one.placed_pages:,}",
            f"{one.placed_pages / one.eligible_pages:.1%}" if one.eligible_pages else "",
            f"{one.placements:,}",
        )
        for one in response.stats
    ]
    columns = ("day", "campaign", "pages, eligible", "pages, placed", "share", "placements")
    console().print(table("what promotion moved", columns, rows))


def confirmed(feed: str, response: promotions_pb2.ConfirmFeedResponse, *, as_json: bool) -> None:
    """The feed that was confirmed."""
    if as_json:
        _print(response)
        return
    said = f"{feed} is confirmed at {_when(response.confirmed_at)} UTC; it counts in full for 15 minutes"
    console().print(said, highlight=False)


def _campaigns(found: Iterable[promotions_pb2.CampaignStatus]) -> object:
    rows = [
        (
            one.id,
            one.state,
            one.payer,
            one.feed or "",
            _when(one.since) if one.HasField("since") else "",
            _when(one.until) if one.HasField("until") else "",
            ", ".join(one.markets) or "all",
            f"{one.items_bound:,}",
            f"{one.items_unknown:,}",
        )
        for one in found
    ]
    columns = ("campaign", "state", "payer", "feed", "since", "until", "markets", "items", "unknown")
    return table("campaigns", columns, rows)


def _when(time: Timestamp) -> str:
    return time.ToDatetime().isoformat(" ", "minutes")


def _print(message: Message) -> None:
    print(json.dumps(MessageToDict(message, preserving_proto_field_name=True), ensure_ascii=False))
