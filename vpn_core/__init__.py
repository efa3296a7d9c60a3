"""What profile, node, range, port and connection mean: the one implementation, standard library only, no I/O.

The filter plugin, the portal and the agent import this package; it imports none of them.
"""
