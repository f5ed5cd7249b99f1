"""The log of served pages: what is served is logged, whatever happens to the disk; what is lost is counted."""

import asyncio
import errno
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from features.served_files import ServedFiles, all_files, closed_files
from features.served_frames import PAGES, Frame, framed, frames_of
from features.served_pages import Block, Page, decode_block
from protos.home.v1 import home_pb2
from tests.books import BY_FILE, UNCAPPED, applied
from tests.conftest import Served, Store, serving


def blocks_in(folder: Path) -> list[Block]:
    """The blocks of a folder, oldest first."""
    return [decode_block(frame.body) for path in all_files(folder) for frame in frames_of(path.read_bytes())]


def pages_in(folder: Path) -> list[tuple[Block, Page]]:
    """The pages of a folder."""
    return [(block, page) for block in blocks_in(folder) for page in block.pages]


async def test_first(published: Store) -> None:
    async with serving(published.state, published.url) as one:
        for n in range(30):
            await one.get_home(f"u00000{n:02}")
    print(sorted(published.state.served_pages.glob("*")))
    b = blocks_in(published.state.served_pages)
    print(b[0].pages[0], b[0].versions, b[0].batches, len(b), b[0].item_keys.shape)
    print(sorted(published.state.served_versions.glob("*")))
    assert 0
