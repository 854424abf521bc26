"""Ray Data jobs: images to a Gallery, texts to a QuerySet, a Gallery to an Index, all of them to a table of results."""
