"""An optional chat model behind an OpenAI-compatible URL: it words queries, asks back, and reorders what was found."""
