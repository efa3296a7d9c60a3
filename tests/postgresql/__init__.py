"""Two servers of PostgreSQL, real ones, on loopback."""
