"""Experiments: who is served which arm, and the rules of the book that says so."""
