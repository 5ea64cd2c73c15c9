"""memcached's replication log: what every write did to its key, in order, and how far each replica server has come.

`record` is one entry, `backlog` the log itself, `pending` what a replica server lacks, `ledger` its account, `follower`
the cursor that applies the log to it (`apply` moves its bytes), `doubtful` the writes whose outcome nobody knows.
"""
