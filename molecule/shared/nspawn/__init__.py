"""Boots hosts with systemd-nspawn. Standard library only: it runs before any virtualenv exists."""
