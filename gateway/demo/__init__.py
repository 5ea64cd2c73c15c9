"""The local stack: real servers in a temporary folder, sample data, a small workload."""
