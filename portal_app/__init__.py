"""The portal: pages, OAuth, API v3, the command line, and what they share."""
