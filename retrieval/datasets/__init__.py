"""Public data sets: what each consists of, whether a download is whole, and what indexing and imagining need of it."""
