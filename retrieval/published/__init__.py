"""Benchmarks of image retrieval as their authors published them: their files to queries with relevant paths."""
