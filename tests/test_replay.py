"""Replay: sampled pages come out as they were, bit for bit; a change is set beside what was served."""

import asyncio
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from features.archive import GRACE_S, Archive
from features.errors import InvalidInput
from features.preferences import Preferences, encode_preferences
from features.recent_state import Did, encode_entry, session_of
from features.samples import Sample, decode_sample, encode_sample, samples_in
from features.served_files import ServedFiles, all_files
from features.served_frames import SAMPLE, Frame
from features.snapshot import Snapshot
from protos.home.v1 import home_pb2, home_pb2_grpc
from ranking.params import INDEX, PARAMS, named
from ranking.surfaces import DEFAULT_SURFACES, load_surfaces
from server.cli import app
from server.page_record import difference, read_page
from server.replay import Change, Replayer, check, compare, most_changed
from server.replay_report import summary
from tests.books import BY_FILE, LAYERS, UNCAPPED, applied
from tests.conftest import Served, Store, serving
from tests.operation import digest_of, mantel, soon
from tests.promotion_books import EVERYTHING
from tests.promotion_books import applied as promoted

SURFACES = ("home", "evaluation")


def samples_of(store: Store) -> list[Sample]:
    """The samples of a state directory; all can be read."""
    found = list(samples_in(store.state.served_samples))
    assert None not in found
    return [one for one in found if one is not None]


def live(store: Store, snapshot: Snapshot, rng: np.random.Generator, users: Sequence[str]) -> None:
    """Gives listeners recent plays, likes and skips, wishes, and some a broken record."""
    now, keys = int(time.time()), snapshot.columns["item_key"]
    ids = [f"t{number:07d}" for number in range(2000)]
    for user in users:
        draw = rng.integers(8)
        if draw < 4:
            ago = np.sort(rng.integers(0, 7200, int(rng.integers(1, 20))))[::-1].tolist()
            entries = (
                encode_entry(
                    Did(int(rng.integers(1, 6))),
                    int(rng.choice(keys)),
                    at=now - one,
                    seconds=int(rng.integers(90)),
                    session=session_of(str(rng.choice(["s1", "s2"]))),
                )
                for one in ago
            )
            store.client.set(store.keys.state(user), b"".join(entries))
            seen = (
                encode_entry(
                    Did.IMPRESSION, int(rng.choice(keys[:200])), at=now - 86_400 - one, session=session_of("s0")
                )
                for one, key in enumerate(rng.choice(keys[:200], int(rng.integers(300))))
            )
            store.client.set(store.keys.impressions(user), b"".join(seen))
        if draw in {2, 3, 4}:
            wishes = Preferences(
                hidden_items=tuple(rng.choice(ids, 5, replace=False).tolist()),
                allow_explicit=[None, True, False][rng.integers(3)],
                discovery=float(rng.random()) if rng.integers(2) else None,
            )
            store.client.set(store.keys.preferences(user), encode_preferences(wishes))
        if draw == 5:
            store.client.setrange(store.keys.record(user, snapshot.manifest.space_id), 40, b"spoiled")


async def ask(one: Served, rng: np.random.Generator, users: Sequence[str], count: int) -> None:
    """Asks for pages and shelves of all kinds, eight at a time."""
    home = home_pb2_grpc.HomeServiceStub(one.channel)
    for start in range(0, count, 8):
        calls: list[Any] = []
        for _ in range(start, min(start + 8, count)):
            fields: dict[str, Any] = {
                "user_id": str(rng.choice(users)),
                "surface": str(rng.choice(["", *SURFACES])),
                "session_id": str(rng.choice(["", "s1", "s2"])),
                "context": home_pb2.Context(
                    market=str(rng.choice(["", "GB", "DE", "ZW"])), locale="de", device=str(rng.choice(["", "phone"]))
                ),
                "exclude_item_ids": [f"t{number:07d}" for number in rng.integers(0, 2000, int(rng.integers(50)))],
                "hidden_ids": [f"t{number:07d}" for number in rng.integers(0, 2000, int(rng.integers(3)))],
                "experiment_overrides": [home_pb2.ExperimentOverride(experiment="uncapped", arm="treatment")]
                if rng.integers(5) == 0
                else [],
            }
            if rng.integers(3):
                calls.append(home.GetHome(home_pb2.GetHomeRequest(**fields), metadata=one.metadata))
            else:
                fields |= {"surface": "home", "shelf_id": str(rng.choice(["picked-for-you", "discover", "genre-mix"]))}
                request = home_pb2.GetShelfRequest(**fields, page_size=int(rng.integers(0, 40)))
                calls.append(home.GetShelf(request, metadata=one.metadata))
        await asyncio.gather(*calls)


async def test_a_thousand_pages_come_out_as_they_were(published: Store, second: Path) -> None:
    """1,000 pages and shelves, of listeners of all kinds, while books and snapshots change and Redis goes."""
    rng = np.random.default_rng(11)
    users = [*(f"u0000{number:03}" for number in range(120)), *(f"stranger{number}" for number in range(20))]
    book = applied(published, BY_FILE, UNCAPPED)
    promoted(published, ({"id": "spring"}, EVERYTHING[::2]), ({"id": "mine", "payer": "Me"}, EVERYTHING[1::2]))
    async with serving(published.state, published.url, replay_sample=1.0) as one:
        snapshot = one.plane.snapshots.current
        assert snapshot is not None
        live(published, snapshot, rng, users)
        await ask(one, rng, users, 400)
        other = applied(published, {**BY_FILE, "concluded": True}, UNCAPPED, previous=book)
        fewer = promoted(published, ({"id": "mine", "payer": "Me"}, EVERYTHING[:500]))
        await soon(lambda: one.plane.experiments.version == other.digest)
        await soon(lambda: one.plane.promotions.version == fewer.digest)
        await ask(one, rng, users, 300)
        published.publish(second)
        digest = digest_of(second)
        await soon(lambda: one.plane.snapshots.current is not None and one.plane.snapshots.current.digest == digest)
        await ask(one, rng, users, 200)
        published.client.shutdown(nosave=True)
        await ask(one, rng, users, 100)
    samples = samples_of(published)
    assert len(samples) == 1000
    found = check(Replayer(published.state), samples)
    assert (found.equal, found.different, dict(found.impossible)) == (1000, (), {})
    pages = [read_page(one.page) for one in samples]
    assert len({one.versions for one in samples}) >= 3
    assert {reason for page in pages for reason in page["degraded"]} >= {"LISTENER_INVALID", "STORE_DOWN"}
    assert sum(bool(page["arms"]) for page in pages) > 500
    assert any(page["folded_in"] for page in pages)
    assert any(page["cold_start"] for page in pages)
    shelves = [shelf for page in pages for shelf in page["shelves"]]
    assert {by for shelf in shelves for by in shelf.get("campaigns", ())} == {"", "spring", "mine"}
    assert any(chance < 1 for shelf in shelves for chance in shelf["propensities"])
    assert {one.method for one in samples} == {"GetHome", "GetShelf"}


@pytest.fixture
async def sampled(published: Store) -> list[Sample]:
    """60 pages of the small world, with experiments."""
    applied(published, BY_FILE, UNCAPPED)
    async with serving(published.state, published.url, replay_sample=1.0) as one:
        for start in range(0, 60, 10):
            await asyncio.gather(*(one.get_home(f"u00000{number:02}") for number in range(start, start + 10)))
    return samples_of(published)


async def test_a_page_that_differs_is_named_with_its_place(published: Store, sampled: list[Sample]) -> None:
    """One score of one page altered in its last bit: 59 equal, and where the other differs."""
    page = json.loads(sampled[7].page)
    page["shelves"][1]["scores"][0] = float(np.nextafter(page["shelves"][1]["scores"][0], np.inf))
    altered = [*sampled[:7], replace(sampled[7], page=json.dumps(page, sort_keys=True).encode()), *sampled[8:]]
    found = check(Replayer(published.state), altered)
    assert found.equal == 59
    assert [(one.page_id, where) for one, where in found.different] == [
        (sampled[7].page_id, f"{page['shelves'][1]['id']}.scores")
    ]


async def test_what_cannot_be_replayed_is_told_apart(published: Store, sampled: list[Sample]) -> None:
    """Another version, another way to read listeners, a snapshot collected, a book or a surfaces file not kept."""
    absent = "0" * 64
    versions = sampled[0].versions
    others = [
        replace(sampled[0], program="0.0.1"),
        replace(sampled[1], frames={**sampled[1].frames, "palm": b"lines"}),
        replace(sampled[2], versions=versions._replace(snapshot=absent)),
        replace(sampled[3], versions=versions._replace(experiments=absent)),
        replace(sampled[4], versions=versions._replace(surfaces=absent)),
    ]
    found = check(Replayer(published.state), [*others, None, *sampled[5:]])
    assert (found.equal, found.different) == (55, ())
    assert sorted(found.impossible.values()) == [1] * 6
    told = " ".join(found.impossible)
    for word in ("0.0.1", "listener", "snapshot 000000000000 was collected", "experiment book", "surfaces file"):
        assert word in told


async def test_a_sample_comes_back_in_every_field(sampled: list[Sample]) -> None:
    """Written and read again; with a frame that is absent, and with none of its bytes right."""
    for one in (sampled[0], replace(sampled[1], frames={"records": None, "states": b"", "preferences": b"\0\xff"})):
        assert decode_sample(encode_sample(one)) == one
    for spoiled in (b"", b"\xff" * 100, encode_sample(sampled[0])[:20]):
        with pytest.raises(ValueError, match=r".*"):
            decode_sample(spoiled)


async def test_nothing_changed_is_no_change(published: Store, sampled: list[Sample]) -> None:
    """Params set to what they are: every page without change, overlap and RBO 1."""
    home = load_surfaces(DEFAULT_SURFACES)["home"]
    free = {place for one in (BY_FILE, UNCAPPED) for place in map(INDEX.get, one["arms"][1]["params"])}
    same = {
        param.name: named(param, home.params[place])
        for param in PARAMS
        if (place := INDEX[param.name]) not in free
        and all(shelf.params[place] == home.params[place] for shelf in home.shelves)
    }
    assert len(same) > 5
    found = compare(Replayer(published.state), sampled, Change(settings=same), k=20)
    said = summary(found, 20)
    assert said["pages_without_change"] == 60
    assert (said["rbo_worst"], said["overlap_at_20_worst"], said["shelves_changed"]) == (1.0, 1.0, 0.0)
    assert most_changed(found.pairs, 5) == []


async def test_a_change_makes_the_page_that_explain_makes(published: Store) -> None:
    """For 20 listeners: the page that replay makes with a param set is the what-if page of ExplainHome."""
    setting = {"diversity": "plain", "page_order": "file"}
    async with serving(published.state, published.url, replay_sample=1.0) as one:
        home = home_pb2_grpc.HomeServiceStub(one.channel)
        what_if = {}
        for number in range(20):
            user = f"u00000{number:02}"
            await one.get_home(user, session_id="s")
            request = home_pb2.GetHomeRequest(user_id=user, session_id="s")
            asked = home_pb2.ExplainHomeRequest(request=request, set_params=setting)
            what_if[user] = (await home.ExplainHome(asked, metadata=one.metadata)).what_if
    found = compare(Replayer(published.state), samples_of(published), Change(settings=setting), k=20)
    assert len(found.pairs) == 20
    for pair in found.pairs:
        expected = what_if[pair.sample.user_id]
        assert [(s["id"], len(s["items"])) for s in pair.treatment["shelves"]] == [
            (shelf.id, len(shelf.items)) for shelf in expected.shelves
        ]
        scores = [score for s in pair.treatment["shelves"] for score in s["scores"]]
        assert np.array_equal(np.array(scores, np.float32), [i.score for s in expected.shelves for i in s.items])
    said = summary(found, 20)
    assert 0 < said["shelves_changed"] <= 1
    assert said["rbo_worst"] <= said["rbo_mean"] < 1
    worst = most_changed(found.pairs, 3)
    assert [pair.rbo for pair in worst] == sorted(pair.rbo for pair in found.pairs)[:3]


@pytest.mark.usefixtures("sampled")
def test_the_command_checks_and_compares(published: Store, second: Path, tmp_path: Path) -> None:
    """--check, --set, --experiments with a file, --snapshot of another embedding space; what is wrong is said."""

    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["replay", *words, "--state", str(published.state.path)])

    done = mantel("replay", "--check", "--state", str(published.state.path))
    assert (done.returncode, "replay of 60 logged pages: 60 equal" in done.stdout) == (0, True), done.stderr
    done = run("--set", "page_order=file", "--set", "diversity=plain", "--show", "1")
    assert done.exit_code == 0, done.output
    assert "rbo mean" in done.output
    assert "would be" in done.output
    book = tmp_path / "E.json"
    concluded = [{**one, "concluded": True} for one in (BY_FILE, UNCAPPED)]
    book.write_text(json.dumps({"layers": LAYERS, "experiments": concluded}))
    assert json.loads(run("--experiments", str(book), "--json").output)["pages"] == 60
    published.publish(second)
    said = json.loads(run("--snapshot", digest_of(second)[:12], "--json", "--pages", "20").output)
    assert (said["pages"], said["shelves"]["picked-for-you"]["would_be"]) == (20, 20)
    for words, text in (
        ((), "--check, or a change"),
        (("--check", "--set", "a=b"), "--check, or a change"),
        (("--set", "a"), "PARAM=VALUE"),
        (("--experiments", "feedbeef"), "kept versions"),
        (("--snapshot", "feedbeef"), "published snapshots"),
    ):
        with pytest.raises(InvalidInput, match=text):
            raise run(*words).exception
    for words, text in ((("--set", "nonsense=1"), "nonsense"), (("--check", "--surface", "nowhere"), "no served page")):
        done = run(*words)
        assert (done.exit_code, text in done.output) == (1, True), done.output


def test_versions_are_kept_as_long_as_a_sample_may_name_them(tmp_path: Path) -> None:
    """A book that was replaced goes an hour after the last file that may name it; what is in force stays."""
    archive = Archive(tmp_path / "versions", tmp_path / "samples")
    for digest in ("aa", "bb"):
        archive.keep("experiments", digest, b"{}")
    archive.keep("surfaces", "ff", b"")
    old = time.time() - GRACE_S - 100
    for path in (tmp_path / "versions").iterdir():
        os.utime(path, (old, old))
    files = ServedFiles(tmp_path / "samples", bytes_max=10**9, age_s=1e9, dropped=lambda _: None, begun=archive.tidy)
    files.write(Frame(SAMPLE, 1, b""))
    assert archive.read("experiments", "aa") is None
    assert archive.read("experiments", "bb") == b"{}"
    assert archive.read("surfaces", "ff") == b""
    files.close()
    (path,) = all_files(tmp_path / "samples")
    path.rename(path.with_name(f"{int((old - 50) * 1000):013d}-1.log"))  # a file from before
    archive.keep("experiments", "cc", b"{}")
    os.utime(archive.path("experiments", "bb"), (old, old))
    archive.tidy()
    assert archive.read("experiments", "bb") == b"{}"
    shutil.rmtree(tmp_path / "samples")
    archive.tidy()
    assert archive.read("experiments", "bb") is None


def test_a_difference_is_found_wherever_it_is(sampled: list[Sample]) -> None:
    """Of two pages: a shelf more, another reason, another market; none where they are equal."""
    page = read_page(sampled[0].page)
    assert difference(page, read_page(sampled[0].page)) == ""
    assert difference(page, {**page, "market": "XX"}) == "market"
    assert difference(page, {**page, "shelves": page["shelves"][1:]}) == "shelves"
    first = page["shelves"][0]
    assert (
        difference(page, {**page, "shelves": [{**first, "why": "taste"}, *page["shelves"][1:]]}) == f"{first['id']}.why"
    )
