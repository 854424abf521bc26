"""Ray Serve: the retrieval graph is served from here."""
