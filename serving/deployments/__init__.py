"""One file for each Serve deployment, and what they say to one another."""
