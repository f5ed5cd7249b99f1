"""The HetRec Last.fm import: the whole data set arrives, oddities of its files included."""

from pathlib import Path

import polars as pl
import pytest

from features.errors import ListeningError, WrongState
from features.forgetting import tombstone
from features.offline.forgotten import FILE, Forgotten, write_forgotten
from features.offline.lastfm import ImportSummary, convert
from features.offline.listening import ListeningData, open_listening
from features.offline.rejections import FORGOTTEN


@pytest.fixture(scope="module")
def imported(hetrec: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ImportSummary, ListeningData]:
    """The real data set, imported once."""
    out = tmp_path_factory.mktemp("lastfm") / "W"
    return convert(hetrec, out), open_listening(out)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Two artists, one of them with a quote in the name, and two listeners, in the format of the data set."""
    files = {
        "artists.dat": 'id\tname\turl\tpictureURL\n7\t Sigur Rós \tu\tp7\n8\tThe "B\tu\t\n',
        "user_artists.dat": "userID\tartistID\tweight\r\n1\t7\t12\r\n1\t8\t1\r\n2\t8\t3\r\n",
        "tags.dat": "tagID\ttagValue\r\n1\tChansón\r\n",
        "user_taggedartists.dat": "userID\tartistID\ttagID\tday\tmonth\tyear\n1\t7\t1\t1\t4\t2009\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode("iso-8859-1" if name == "tags.dat" else "utf-8"))
    return tmp_path


def rows(source: Path, out: Path) -> list[tuple[str, str, int]]:
    """What an import reports, without examples."""
    return [(table, reason, count) for table, reason, count, _ in convert(source, out).report.rows()]


def test_every_artist_listener_and_listen_of_the_data_set_arrives(
    imported: tuple[ImportSummary, ListeningData],
) -> None:
    """17,632 artists, 1,892 listeners and 92,834 listens, as the data set's own readme counts, pass every check."""
    summary, data = imported
    counts = [sum(frame.height for frame in table()) for table in (data.items, data.listeners, data.listens)]
    assert counts == [17_632, 1_892, 92_834] == [summary.items, summary.listeners, summary.listens]
    assert data.report.rows() == []
    assert data.report.share() == 0
    assert data.directory.stat().st_mode & 0o777 == 0o700


def test_only_tags_of_unlisted_artists_are_left_out(imported: tuple[ImportSummary, ListeningData]) -> None:
    """1,538 tags were given to artists that artists.dat does not list; nothing else is refused."""
    found = [(table, reason, count) for table, reason, count, _ in imported[0].report.rows()]
    assert found == [("user_taggedartists.dat", "artistID is not in artists.dat", 1_538)]


def test_genres_are_the_tags_that_many_agree_on(imported: tuple[ImportSummary, ListeningData]) -> None:
    """Genres are a few hundred, lower-case, at most 8 an artist and distinct; the first stands in the subtitle."""
    summary, data = imported
    items = pl.concat(data.items())
    genres = items["genres"].explode().drop_nulls()
    assert summary.genres == genres.n_unique() == 367
    assert (genres == genres.str.to_lowercase()).all()
    assert items.select((pl.col("genres").list.len() <= 8).all()).item()
    assert items.select((pl.col("genres").list.n_unique() == pl.col("genres").list.len()).all()).item()
    tagged = items.filter(pl.col("genres").list.len() > 0)
    assert (tagged["subtitle"] == "Artist · " + tagged["genres"].list.first()).all()
    assert items.filter(title="Morcheeba")["genres"].item().to_list()[0] == "trip-hop"


def test_names_keep_their_quotes_and_letters(imported: tuple[ImportSummary, ListeningData]) -> None:
    """A quote in a name is a letter like others, and UTF-8 stays what it is."""
    titles = set(pl.concat(imported[1].items())["title"])
    assert {'"Weird Al" Yankovic', "Sigur Rós", "Björk"} <= titles
    assert not any("\ufffd" in title for title in titles)


def test_what_the_data_set_does_not_tell_stays_absent(imported: tuple[ImportSummary, ListeningData]) -> None:
    """No play has a time and no listener a market."""
    _, data = imported
    assert all(frame["last_played_at"].is_null().all() for frame in data.listens())
    assert all((frame["market"] == "").all() for frame in data.listeners())


def test_tags_are_read_as_latin_letters(tiny: Path, tmp_path: Path) -> None:
    """ISO-8859-1 bytes of tags.dat become the letters they stand for, where five artists share the tag."""
    artists = "".join(f"{number}\tA{number}\tu\tp\n" for number in range(1, 6))
    given = "".join(f"{user}\t{number}\t1\t1\t4\t2009\n" for number in range(1, 6) for user in (1, 2))
    (tiny / "artists.dat").write_text("id\tname\turl\tpictureURL\n" + artists, encoding="utf-8")
    (tiny / "user_taggedartists.dat").write_text("userID\tartistID\ttagID\tday\tmonth\tyear\n" + given)
    (tiny / "user_artists.dat").write_text("userID\tartistID\tweight\n1\t1\t1\n")
    convert(tiny, tmp_path / "W")
    items = pl.concat(open_listening(tmp_path / "W").items())
    assert items["genres"].to_list() == [["chansón"]] * 5


def test_bad_rows_are_counted_by_reason_and_the_others_arrive(tiny: Path, tmp_path: Path) -> None:
    """Each kind of bad row is reported once, with its file, and costs no other row."""
    with (tiny / "user_artists.dat").open("a", newline="") as file:
        file.write("1\t7\t9\r\n2\t7\tmany\r\n2\t7\r\n2\t99\t4\r\n2\t7\t0\r\n")
    assert rows(tiny, tmp_path / "W") == [
        ("user_artists.dat", "artistID is not in artists.dat", 1),
        ("user_artists.dat", "row has not 3 fields", 1),
        ("user_artists.dat", "userID and artistID are repeated", 1),
        ("user_artists.dat", "weight is not 1 or more", 1),
        ("user_artists.dat", "weight is not a whole number", 1),
    ]
    listens = pl.concat(open_listening(tmp_path / "W").listens())
    assert listens.select("user_id", "item_id", "plays").rows() == [("1", "7", 12), ("1", "8", 1), ("2", "8", 3)]


@pytest.mark.parametrize("name", ["artists.dat", "user_artists.dat", "tags.dat", "user_taggedartists.dat"])
def test_a_missing_file_is_named(tiny: Path, tmp_path: Path, name: str) -> None:
    """An import without one of the four files names it and writes nothing."""
    (tiny / name).unlink()
    with pytest.raises(ListeningError, match=name):
        convert(tiny, tmp_path / "W")
    assert not (tmp_path / "W").exists()


def test_a_missing_column_is_named(tiny: Path, tmp_path: Path) -> None:
    """A header without a column that is used names file and column."""
    (tiny / "tags.dat").write_text("tagID\tvalue\n1\trock\n")
    with pytest.raises(ListeningError, match=r"tags\.dat has no column tagValue"):
        convert(tiny, tmp_path / "W")


def test_an_import_gives_the_same_bytes_again(tiny: Path, tmp_path: Path) -> None:
    """Importing twice over the same place gives the same digest."""
    convert(tiny, tmp_path / "W")
    before = open_listening(tmp_path / "W").digest()
    convert(tiny, tmp_path / "W")
    assert open_listening(tmp_path / "W").digest() == before


def test_an_import_replaces_nothing_but_an_import(tiny: Path, tmp_path: Path) -> None:
    """A folder with something else in it is refused and left as it is."""
    (tmp_path / "W").mkdir()
    (tmp_path / "W" / "thesis.txt").write_text("mine")
    with pytest.raises(WrongState, match="is no import"):
        convert(tiny, tmp_path / "W")
    assert (tmp_path / "W" / "thesis.txt").read_text() == "mine"


def test_who_was_forgotten_is_left_out(tiny: Path, tmp_path: Path) -> None:
    """Listens and tags of theirs, whenever they were; counted, and in no example."""
    write_forgotten(tmp_path / FILE, Forgotten(at={tombstone("1").hex(): 1}))
    summary = convert(tiny, tmp_path / "W", forgotten=tmp_path / FILE)
    assert (summary.items, summary.listeners, summary.listens, summary.genres) == (2, 1, 1, 0)
    assert [row for row in summary.report.rows() if row[1] == FORGOTTEN] == [
        ("user_artists.dat", FORGOTTEN, 2, ()),
        ("user_taggedartists.dat", FORGOTTEN, 1, ()),
    ]
