"""Pure decisions about requests; no IO."""
