"""The portal: pages, OAuth, API v3, the command line, and what they share."""

import logging

# It tells of its plugins while it is imported, which is at each start.
logging.getLogger("alembic").setLevel(logging.WARNING)
