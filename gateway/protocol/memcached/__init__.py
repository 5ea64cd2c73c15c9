"""memcached's protocols, without IO: requests from clients, replies from servers, requests of the gateway's own.

`decoder` (over `lines`) turns a client's bytes into `request`s, `encoder` writes the gateway's own, `reply_decoder`
turns a server's bytes into `reply`s, each held against its request. Classic text towards clients, classic and meta
text towards servers.
"""
