"""ExperimentService: applying the experiment book, and telling what it says."""

import asyncio
import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from google.protobuf.json_format import MessageToDict, ParseDict, SerializeToJsonError

from features.books import BookPointer, BookShelf
from features.errors import InvalidInput, StaleEtag
from features.state import State
from protos.experiments.v1 import experiments_pb2
from ranking.experiments.applying import EMPTY, apply
from ranking.experiments.assignment import Assigner, Audience
from ranking.experiments.book import Book
from ranking.experiments.spec import BUCKETS, Experiment, Spec, read_spec
from ranking.params import PARAMS, named
from server.books import InForce, in_force, put
from server.experiments import BOOKS
from server.guard import Call

_USER_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentService:
    """Answers experimenters. Everything here may wait: it runs in threads, away from the data plane's processes."""

    state: State
    shelf: BookShelf

    async def apply_book(
        self, request: experiments_pb2.ApplyBookRequest, call: Call
    ) -> experiments_pb2.ApplyBookResponse:
        """Makes a spec the book in force, or tells whether it could be."""
        return await asyncio.to_thread(self._apply, request, call)

    async def get_book(self, _: experiments_pb2.GetBookRequest, call: Call) -> experiments_pb2.GetBookResponse:
        """The book in force."""
        del call
        now = await asyncio.to_thread(self._in_force)
        return experiments_pb2.GetBookResponse(book=_book(now.pointer, now.book))

    async def list_experiments(
        self, _: experiments_pb2.ListExperimentsRequest, call: Call
    ) -> experiments_pb2.ListExperimentsResponse:
        """What each experiment of the book in force holds and serves."""
        del call
        now = await asyncio.to_thread(self._in_force)
        return experiments_pb2.ListExperimentsResponse(
            version=now.version, experiments=map(_status, now.book.spec.experiments), layers=_layers(now.book)
        )

    async def explain_assignment(
        self, request: experiments_pb2.ExplainAssignmentRequest, call: Call
    ) -> experiments_pb2.ExplainAssignmentResponse:
        """What every layer comes to for a listener."""
        del call
        if not _USER_ID.fullmatch(request.user_id):
            raise InvalidInput(("user_id", "must be 1-128 of [A-Za-z0-9_.-]"))
        now = await asyncio.to_thread(self._in_force)
        return experiments_pb2.ExplainAssignmentResponse(version=now.version, outcomes=_outcomes(now.book, request))

    def _apply(self, request: experiments_pb2.ApplyBookRequest, call: Call) -> experiments_pb2.ApplyBookResponse:
        spec, now = _spec(request.spec), self._in_force()
        if request.etag != now.version:
            raise StaleEtag("another book is in force than the etag says; look at it first")
        book = apply(now.book, spec, seed=secrets.randbits(63))
        if request.validate_only:
            told = experiments_pb2.Book(spec=request.spec)
        else:
            told = _book(put(book, now, self.shelf, by=call.principal.name), book)
        return experiments_pb2.ApplyBookResponse(book=told, experiments=map(_status, spec.experiments))

    def _in_force(self) -> InForce[Book]:
        return in_force(BOOKS, self.shelf, self.state, EMPTY)


def _spec(said: experiments_pb2.Spec) -> Spec:
    """The spec of a request; the contract's zeros are what was not said.

    Raises:
        InvalidInput: naming every field that is wrong by itself.
    """
    try:
        fields = MessageToDict(said, preserving_proto_field_name=True)
    except SerializeToJsonError as error:  # a param that is NaN or infinite
        raise InvalidInput(("spec", "holds a number that JSON has not")) from error
    return read_spec(json.dumps(fields))


def _book(pointer: BookPointer | None, book: Book) -> experiments_pb2.Book:
    if pointer is None:
        return experiments_pb2.Book()
    told = experiments_pb2.Book(version=pointer.digest, sequence=pointer.sequence, applied_by=pointer.applied_by)
    told.applied_at.FromMicroseconds(int(pointer.applied_at * 1e6))
    ParseDict(book.spec.model_dump(mode="json", exclude_none=True), told.spec)
    return told


def _status(one: Experiment) -> experiments_pb2.ExperimentStatus:
    state = "concluded" if one.concluded else "running" if one.live_buckets else "reserved"
    told = experiments_pb2.ExperimentStatus(
        key=one.key,
        iteration=one.iteration,
        layer=one.layer,
        state=state,
        reserved_buckets=0 if one.concluded else one.reserved_buckets,
        live_buckets=0 if one.concluded else one.live_buckets,
    )
    for arm in one.arms:
        ParseDict(arm.model_dump(mode="json"), told.arms.add())
    return told


def _layers(book: Book) -> Iterator[experiments_pb2.LayerStatus]:
    for layer in book.spec.layers:
        held = sum(one.reserved_buckets for one in book.spec.running.values() if one.layer == layer.id)
        yield experiments_pb2.LayerStatus(id=layer.id, params=layer.params, free_buckets=BUCKETS - held)


def _outcomes(book: Book, request: experiments_pb2.ExplainAssignmentRequest) -> Iterator[experiments_pb2.LayerOutcome]:
    assigner = Assigner(book)
    audience = Audience(
        market=request.market,
        segment=request.segment if request.HasField("segment") else -1,
        device=request.device,
        locale=request.locale,
    )
    buckets = assigner.buckets(request.user_id)
    for one in assigner.outcomes(request.user_id, audience, {}):
        yield experiments_pb2.LayerOutcome(
            layer=one.layer,
            bucket=buckets[one.layer],
            reason=one.reason.value,
            experiment=one.experiment,
            arm=one.arm,
            params={PARAMS[place].name: named(PARAMS[place], value) for place, value in one.overrides},
        )
