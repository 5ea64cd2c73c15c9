"""A gateway whose classifier calls every marked statement a proven read: what then happens is the second fence's work.

Run like `python -m gateway`. A statement is marked by the comment that MARK holds; what the classifier was taught by a
refusal still counts for it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Final

from gateway.cli.main import main
from gateway.routing import sql as routing_sql
from gateway.routing.fingerprint import DEFAULT_READING, Reading
from gateway.routing.operation import Kind, SqlOperation, TransactionEffect

MARK: Final = b"/* misroute */"


class Misclassifier(routing_sql.Classifier):
    """Calls what is marked a read that leaves nothing behind."""

    def classify(self, sql: bytes, reading: Reading = DEFAULT_READING) -> SqlOperation:
        operation = super().classify(sql, reading)
        if MARK not in sql or operation.reason == routing_sql.REFUSED_BEFORE:
            return operation
        return replace(
            operation,
            kind=Kind.READ,
            transaction=TransactionEffect.NONE,
            pin=None,
            unpin=None,
            needs_primary=None,
            last_connection=False,
            assignments=(),
            database=None,
            gateway=None,
            temporary_tables=(),
            writes=(),  # which policies do not believe of a read
            multi=False,
        )


if __name__ == "__main__":
    import gateway.app

    vars(gateway.app)["Classifier"] = Misclassifier
    sys.exit(main())
