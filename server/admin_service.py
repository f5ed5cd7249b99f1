"""AdminService: what runs, what is served, and going to another snapshot or back."""

import asyncio
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter

import redis
from google.protobuf.timestamp_pb2 import Timestamp

from features.errors import DeadlineExceeded, InvalidInput, NotFound, SnapshotRefused, Unavailable, WrongState
from features.keys import Keys
from features.pointer import Pointer, Served, flip_pointer, read_pointer
from features.snapshot import Manifest, load, read_manifest
from features.spaces import read_space
from features.state import Heartbeat, State
from protos.admin.v1 import admin_pb2
from server.guard import Call
from server.memory import pss_bytes
from server.version import VERSION

_DIGEST_PREFIX_MIN = 8
_LOCK_PATIENCE_S = 10.0
ROLLOVER_LOOK_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminService:
    """Answers operators. Everything here may wait: it runs in threads, away from the data plane's processes."""

    state: State
    keys: Keys
    client: redis.Redis

    async def get_status(self, _: admin_pb2.GetStatusRequest, call: Call) -> admin_pb2.GetStatusResponse:
        """What each worker believes."""
        del call
        pointer, store_up = None, True
        try:
            with suppress(WrongState):  # it answers, with a pointer that cannot be read
                pointer = await asyncio.to_thread(read_pointer, self.client, self.keys)
        except redis.RedisError:
            store_up = False
        return admin_pb2.GetStatusResponse(
            version=VERSION,
            workers=map(_worker, self.state.heartbeats()),
            current_digest="" if pointer is None else pointer.digest,
            store_up=store_up,
            processes=await asyncio.to_thread(lambda: list(self._processes(store_up=store_up))),
        )

    async def list_snapshots(self, _: admin_pb2.ListSnapshotsRequest, call: Call) -> admin_pb2.ListSnapshotsResponse:
        """The published snapshots, newest first."""
        del call
        pointer = await asyncio.to_thread(self._pointer)
        return admin_pb2.ListSnapshotsResponse(snapshots=list(await asyncio.to_thread(self._list, pointer)))

    async def activate_snapshot(
        self, request: admin_pb2.ActivateSnapshotRequest, call: Call
    ) -> admin_pb2.ActivateSnapshotResponse:
        """Makes a published snapshot the one that is served, after verifying it."""
        snapshot = await asyncio.to_thread(self._activate, request.digest, call)
        return admin_pb2.ActivateSnapshotResponse(snapshot=snapshot)

    async def rollback_snapshot(
        self, _: admin_pb2.RollbackSnapshotRequest, call: Call
    ) -> admin_pb2.RollbackSnapshotResponse:
        """Goes back to the snapshot that was served before."""
        return admin_pb2.RollbackSnapshotResponse(snapshot=await asyncio.to_thread(self._rollback, call))

    async def rollover_workers(
        self, _: admin_pb2.RolloverWorkersRequest, call: Call
    ) -> admin_pb2.RolloverWorkersResponse:
        """Replaces the workers one after the other; answers when all are new."""
        del call
        endpoints, before = self.state.endpoints(), self.state.rolled()
        if endpoints is None or endpoints.pid != os.getppid():
            raise WrongState("no supervisor runs this server")
        if before.outcome == "running":
            raise WrongState("a rollover is under way already")
        old = {beat.pid for beat in self.state.heartbeats()}
        os.kill(endpoints.pid, signal.SIGUSR1)
        while (rolled := self.state.rolled()).number == before.number or rolled.outcome == "running":  # noqa: ASYNC110  # another process tells
            await asyncio.sleep(ROLLOVER_LOOK_S)
        if rolled.outcome != "done":
            raise WrongState("a new worker does not start: the server's log says why; the old workers serve on")
        beats = [beat for beat in self.state.heartbeats() if beat.pid not in old]
        return admin_pb2.RolloverWorkersResponse(workers=map(_worker, beats))

    def _processes(self, *, store_up: bool) -> Iterable[admin_pb2.Process]:
        """The supervisor, its children, and the store where it runs on this machine."""
        workers = {beat.pid for beat in self.state.heartbeats()}
        kinds = {os.getppid(): "supervisor", os.getpid(): "control"} | dict.fromkeys(workers, "worker")
        if store_up and "path" in self.client.connection_pool.connection_kwargs:  # a socket: the embedded one
            kinds[int(self.client.info("server")["process_id"])] = "redis"
        for pid, kind in sorted(kinds.items(), key=itemgetter(1)):
            yield admin_pb2.Process(kind=kind, pid=pid, pss_bytes=pss_bytes(pid))

    def _pointer(self) -> Pointer | None:
        try:
            return read_pointer(self.client, self.keys)
        except redis.RedisError as error:
            raise Unavailable("the store cannot be reached") from error

    def _list(self, pointer: Pointer | None) -> Iterable[admin_pb2.Snapshot]:
        folders = [path for path in self.state.snapshots.glob("*") if not path.name.startswith(".")]
        for folder in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
            try:
                manifest, digest = read_manifest(folder)
            except SnapshotRefused:
                continue
            yield self._snapshot(manifest, digest, folder.stat().st_mtime, pointer)

    def _snapshot(
        self, manifest: Manifest, digest: str, published_at: float, pointer: Pointer | None
    ) -> admin_pb2.Snapshot:
        return admin_pb2.Snapshot(
            digest=digest,
            space_id=manifest.space_id,
            items=manifest.items,
            size_bytes=manifest.size_bytes,
            current=pointer is not None and pointer.digest == digest,
            published_at=_timestamp(published_at),
            workers=sum(beat.digest == digest for beat in self.state.heartbeats()),
        )

    def _activate(self, prefix: str, call: Call) -> admin_pb2.Snapshot:
        if len(prefix) < _DIGEST_PREFIX_MIN or not prefix.isalnum():
            raise InvalidInput(("digest", f"must be at least {_DIGEST_PREFIX_MIN} hex digits"))
        found = list(self.state.snapshots.glob(f"{prefix}*"))
        if not found:
            raise NotFound("no published snapshot has a digest that begins so")
        if len(found) > 1:
            raise InvalidInput(("digest", f"{len(found)} published snapshots begin so; give more of it"))
        return self._serve(found[0].name, call, back_from=None)

    def _rollback(self, call: Call) -> admin_pb2.Snapshot:
        pointer = self._pointer()
        if pointer is None or not pointer.before:
            raise WrongState("no snapshot was served before this one")
        return self._serve(pointer.before[0].digest, call, back_from=pointer.sequence)

    def _serve(self, digest: str, call: Call, *, back_from: int | None) -> admin_pb2.Snapshot:
        """Moves the pointer, alone on this state directory: what is verified here nobody collects meanwhile."""
        patience_s = min(_LOCK_PATIENCE_S, call.deadline - time.monotonic())
        held = "a publish is under way on this state directory; try again when it has ended"
        with self.state.lock("publish", wait=True, held=held, patience_s=patience_s):
            return self._serve_locked(digest, call, back_from=back_from)

    def _serve_locked(self, digest: str, call: Call, *, back_from: int | None) -> admin_pb2.Snapshot:
        folder = self.state.snapshots / digest
        try:
            snapshot = load(folder)
        except SnapshotRefused as error:
            raise WrongState(f"snapshot {digest[:12]} was removed or does not verify") from error
        if snapshot.digest != digest:
            raise WrongState(f"snapshot {digest[:12]} does not verify")
        served = Served(digest=digest, space_id=snapshot.manifest.space_id)
        try:
            if not read_space(self.client, self.keys, served.space_id).complete:
                raise WrongState(f"the store does not hold the listeners of snapshot {digest[:12]}; publish it again")
            if time.monotonic() > call.deadline:  # nobody waits any more: what was answered so has changed nothing
                raise DeadlineExceeded("the deadline passed before the snapshot was verified")
            pointer = flip_pointer(self.client, self.keys, served, now=time.time(), back_from=back_from)
        except redis.RedisError as error:
            raise Unavailable("the store cannot be reached") from error
        return self._snapshot(snapshot.manifest, digest, folder.stat().st_mtime, pointer)


def _worker(beat: Heartbeat) -> admin_pb2.Worker:
    return admin_pb2.Worker(
        pid=beat.pid,
        snapshot_digest=beat.digest,
        started_at=_timestamp(beat.started_at),
        seen_at=_timestamp(beat.seen_at),
        refusal=beat.refusal,
        experiment_book_version=beat.experiment_book,
        experiment_book_refusal=beat.book_refusal,
        promotion_book_version=beat.promotion_book,
        promotion_book_refusal=beat.promotion_refusal,
    )


def _timestamp(seconds: float) -> Timestamp:
    return Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
