"""Connections to servers: pools, leases, shared pipelines, hash rings."""
