"""What guards the API: keys, rates, sizes, and which machines may connect. ASGI middlewares."""
