"""The report lane: one process per portal host, one leader by a lock in the database.

The leader polls every node, repairs what a call could not do, reads the nodes' journals and keeps house.
"""
