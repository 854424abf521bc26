"""Groups of commands that the front door, ``mindseye.py``, puts together."""
