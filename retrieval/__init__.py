"""The method without Ray: decode, embed, imagine, aggregate, fuse, search, measure.

Imports no other part of mindseye.
"""
