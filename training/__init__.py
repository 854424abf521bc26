"""Ray Train: the aggregator is trained here."""
