"""Structured logs: one JSON object per line on standard error, listeners hashed, pages sampled."""

import hashlib
import logging
import random
import secrets
import sys

import structlog

from features.snapshot import Snapshot
from ranking.types import Home, HomeQuery
from server.guard import Call


def configure(process: str) -> None:
    """Sends this process' logs, also those of libraries, to standard error as JSON."""
    shared: list[structlog.typing.Processor] = [
        lambda _logger, _method, event: {**event, "process": process},
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


class RequestLog:
    """Logs a share of the pages. A listener appears as a hash whose salt is drawn anew by each process."""

    def __init__(self, share: float) -> None:
        """Logs about this share of pages, 0-1."""
        self._share = share
        self._salt = secrets.token_bytes(16)
        self._log = structlog.get_logger("mantel.page")

    def served(self, call: Call, query: HomeQuery, home: Home, snapshot: Snapshot) -> None:
        """A page was served."""
        if random.random() >= self._share:  # noqa: S311  # sampling, not secrecy
            return
        self._log.info(
            "page",
            request_id=call.request_id,
            principal=call.principal.name,
            listener=self.hashed(query.user_id),
            surface=query.surface.name,
            shelves=len(home.shelves),
            cold_start=home.cold_start,
            degraded=[reason.value for reason in home.degraded],
            snapshot=snapshot.digest[:12],
        )

    def hashed(self, user_id: str) -> str:
        """A listener as logs may show it."""
        return hashlib.blake2b(user_id.encode(), key=self._salt, digest_size=8).hexdigest()
