"""The memcached text protocol, both roles, without IO."""
