"""What commands print: pages, tables, JSON and progress."""

import io

import pytest
from rich.console import Console

from protos.admin.v1 import admin_pb2
from protos.home.v1 import home_pb2
from server import face, reports


def test_what_is_not_ascii_stays_readable_in_json() -> None:
    """Titles are not escaped."""
    home = home_pb2.GetHomeResponse(shelves=[home_pb2.Shelf(title="Für dich ausgewählt")])
    assert "Für dich ausgewählt" in face.page_json(home, 0.1)


def test_the_table_of_favourites_fits_the_console() -> None:
    """Long titles are cut by an ellipsis, one line to each."""
    rows = [("Title " * 20, "Artist " * 20, "genre, " * 20, 7)] * 3
    narrow = Console(width=60, file=io.StringIO())
    narrow.print(face.favourites("u1", rows))
    lines = narrow.file.getvalue().splitlines()  # type: ignore[attr-defined]  # it is a StringIO
    assert max(map(len, lines)) <= 60
    assert sum("…" in line for line in lines) == 3


def test_of_what_is_interrupted_no_bar_stays(capfd: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends with one word and the code of SIGINT; an error passes on."""

    def bar(ending: type[BaseException]) -> None:
        with face.progress() as tell:
            tell("train", 1, 3)
            raise ending

    with pytest.raises(SystemExit) as ended:
        bar(KeyboardInterrupt)
    assert ended.value.code == 130
    assert capfd.readouterr().err.strip() == "interrupted"
    with pytest.raises(OSError, match=r"^$"):
        bar(OSError)
    assert capfd.readouterr().err.strip() == ""


def test_while_the_store_is_down_the_pointer_of_the_file_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    """And marked as such."""
    reports.status(admin_pb2.GetStatusResponse(version="1"), kept="ab" * 32, as_json=False)
    assert "store down · pointer abababababab (of the pointer file)" in capfd.readouterr().out
    up = admin_pb2.GetStatusResponse(version="1", store_up=True)
    reports.status(up, kept="ab" * 32, as_json=False)
    assert "store up · pointer none" in capfd.readouterr().out
