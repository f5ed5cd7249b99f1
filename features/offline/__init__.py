"""The batch pipeline: from listening history to a published snapshot."""
