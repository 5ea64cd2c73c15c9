"""The shared replication engine: positions, freshness, observation, and the memcached log."""
