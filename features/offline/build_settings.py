"""What a build depends on: its settings, and what names the results that are of the same data and settings."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import faiss

from features import listeners
from features.offline import records
from features.offline.cards import CARD_FORMAT
from features.offline.gate import GateLimits
from features.offline.index_choice import IndexKind, IndexSettings
from features.offline.train import TRAINING, TrainSettings
from features.snapshot import FORMAT


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """All that a build depends on but the data; see TrainSettings, IndexSettings and GateLimits.

    `refuse` false keeps a snapshot that misses the limits.
    """

    factors: int = 64
    regularization: float = 100.0
    alpha: float = 32.0
    iterations: int = 15
    seed: int = 7
    index: IndexKind = "auto"
    depth: int = 256
    target_recall: float = 0.98
    limits: GateLimits = field(default_factory=GateLimits)
    refuse: bool = True

    @property
    def training(self) -> TrainSettings:
        """What shapes the embedding space."""
        return TrainSettings(**{name: getattr(self, name) for name in TrainSettings.__dataclass_fields__})

    @property
    def indexing(self) -> IndexSettings:
        """What index is wanted."""
        return IndexSettings(kind=self.index, depth=self.depth, target_recall=self.target_recall, seed=self.seed)


def key_of(source: str, settings: BuildSettings) -> dict[str, Any]:
    """All that the stages depend on: what is kept of them is good for a build of the same."""
    free = ("limits", "refuse")  # of the gate, which comes after them
    return {
        "data": source,
        "settings": {name: value for name, value in asdict(settings).items() if name not in free},
        "version": version("mantel"),
        "formats": [FORMAT, CARD_FORMAT, TRAINING, listeners.VERSION, records.CONTENT],
        "faiss": faiss.__version__,
    }


def space_id_of(source: str, training: TrainSettings) -> str:
    """Names the embedding space, and so its listener records, by all that shapes them: 16 hex digits."""
    versions = [TRAINING, listeners.VERSION, records.CONTENT]
    shaped_by = json.dumps([source, asdict(training), versions], sort_keys=True)
    return hashlib.sha256(shaped_by.encode()).hexdigest()[:16]
