"""The promotion book: what a promoter writes, what is stored of it, and its items as rows of a snapshot."""
