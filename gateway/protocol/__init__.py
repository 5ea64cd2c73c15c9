"""Sans-IO codecs, client and server side: bytes in, messages out; never imports trio."""
