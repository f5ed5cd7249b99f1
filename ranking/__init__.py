"""The core: pure, synchronous, vectorised; no I/O, no clock, no globals."""
