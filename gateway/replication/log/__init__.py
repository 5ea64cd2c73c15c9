"""The replication log of a memcached group and what follows it."""
