"""What an operator can ask of and do to a running gateway."""

EXPLAIN_SOCKET = "explain.sock"
"""In data_dir. Here, so that the commands know it without importing what answers there."""
