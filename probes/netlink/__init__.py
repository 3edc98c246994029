"""Sockets by netlink (sock_diag(7)). No probe."""
