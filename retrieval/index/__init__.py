"""The shards of an index: kinds of FAISS index, building, files, search, exact scores, how far a search looks."""
