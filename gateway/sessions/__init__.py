"""One conversation with a client per protocol, and the state it keeps."""
