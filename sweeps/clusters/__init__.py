"""A sweep on a cluster elsewhere: sent there, brought back, and what would go wrong. Ray's dashboard is the one door.

What a cluster runs for it is in `there`.
"""
