"""The FAISS index of one shard: kinds, building, searching, files."""
