"""Read/write-splitting gateway for MySQL, memcached and Redis."""
