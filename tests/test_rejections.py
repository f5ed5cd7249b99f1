"""Rejected rows: counted by table and reason, with a few examples, as a share of what was read."""

from pathlib import Path

from features.offline.listening import open_listening
from features.offline.rejections import REPEATED, Rejections


def test_counts_add_up() -> None:
    """Adding to a reason sums, and keeps the first five examples."""
    report = Rejections()
    for number in range(4):
        report.add("listens", "plays is odd", 10, [f"{number}a", f"{number}b"])
    assert report.rows() == [("listens", "plays is odd", 40, ("0a", "0b", "1a", "1b", "2a"))]
    assert report.counts() == {"listens": {"plays is odd": 40}}


def test_the_share_is_of_all_rows_read() -> None:
    """A repeated row is not bad; nothing read is nothing bad; a new pass over a table forgets the earlier one."""
    report = Rejections()
    assert report.share() == 0
    for table in ("items", "listens"):
        report.read(table, 4)
    report.add("listens", "plays is odd", 2, [])
    report.add("items", f"item_id {REPEATED}", 1, [])
    assert report.share() == 2 / 8
    report.begin("listens")
    assert report.share() == 0
    assert report.counts() == {"items": {f"item_id {REPEATED}": 1}}


def test_reading_a_table_counts_its_rows_afresh(tmp_path: Path) -> None:
    """Also those that cannot be read; reading again counts nothing twice."""
    (tmp_path / "items.csv").write_text("item_id,kind\nt1,song\n")
    (tmp_path / "listens.csv").write_text("user_id,item_id,plays\nu1,t1,0\nu2,t1\nu3,t1,1\n")
    data = open_listening(tmp_path)
    for table in (data.items, data.listens, data.listens):
        list(table())
    assert data.report.share() == 3 / 4
    assert [count for _, _, count, _ in data.report.rows()] == [1, 1, 1]
