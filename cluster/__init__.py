"""Machines: what runs where (profiles), and how to reach Ray (session)."""
