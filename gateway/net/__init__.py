"""Sockets and waiting: the only package that touches trio.lowlevel."""
