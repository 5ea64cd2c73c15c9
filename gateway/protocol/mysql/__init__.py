"""The MySQL client/server protocol, both roles, without IO."""
