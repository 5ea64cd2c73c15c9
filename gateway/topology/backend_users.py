"""`users = "backend"`: who the primary accepts may log in, after it was asked by a real log-in with what was proved.

What is known of an account's password decides how a client proves it (auth.Known):

- mysql_native_password: the server's stored hash verifies the client's answer, and the answer yields what logs in.
- everything else that a password can log in to (caching_sha2_password, sha256_password, ed25519): the first log-in
  takes caching_sha2's full path, in which the client names the password; it is kept in memory, as one from the
  configuration would be, and verifies the short answers of later log-ins.

The server sees the gateway's address and not the client's. So the account is looked up by the client's address, and the
account that the server itself takes for the gateway's connection (CURRENT_USER()) has to be the same: nobody gets an
account, with its rights, that is not meant for where it comes from. A client on this machine counts as coming from
where the server sees the gateway.

A proof is a credential and when a server last accepted it. It is made again by a log-in after `proof_interval`, after
the account's row or any account has changed, and in the background while the credential is in use; a refusal drops it,
closes the connections of its user, and ends its sessions between transactions.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from gateway.backends.mysql import Credentials, Passwords, ask, log_in, log_in_errors
from gateway.config import Address, User
from gateway.errors import BackendRefused, Refused, Unavailable
from gateway.net.connect import Conversation
from gateway.net.lane import Lane
from gateway.protocol.mysql.auth import Known, Password
from gateway.protocol.mysql.commands import query
from gateway.protocol.mysql.constants import NATIVE_PASSWORD, Collation, ErrorCode
from gateway.replication.observe import texts
from gateway.topology import accounts
from gateway.topology.accounts import Account
from gateway.topology.host_patterns import LOCALHOST
from gateway.topology.mysql import SqlMember, Topology
from gateway.topology.users import Candidate, Users, denied

KEPT_SECONDS: Final = 600.0  # a credential that nobody used for longer is forgotten, and learnt again
PASSWORDS_KEPT: Final = 2  # per account: MySQL's dual passwords (RETAIN CURRENT PASSWORD)
PROOFS_KEPT: Final = 10_000
LOOPBACK: Final = frozenset({LOCALHOST, "127.0.0.1", "::1", "::ffff:127.0.0.1"})
# What says nothing of the credential: too many connections of all, of the user, of the account; shutting down.
_SAYS_NOTHING: Final = frozenset({1040, 1203, 1226, 1053, 0})
_NO_PRIVILEGE: Final = frozenset({1142, 1044, 1143, 1227})

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Proof:
    """When a server accepted a password for an account (-inf: to be asked again), and for whom it was used last."""

    account: Account
    at: float
    used: float


@dataclass(slots=True)
class _Reader:
    """The connection on which accounts are read."""

    conversation: Conversation
    address: Address
    mariadb: bool
    monitor: str  # CURRENT_USER()
    gateway: tuple[str, ...]  # by which addresses and names the server knows this machine


class BackendUsers(Users):
    """See the module. `problem` says what keeps everybody out, None if nothing does."""

    def __init__(self, topology: Topology, lane: Lane, monitor: Credentials, interval: float) -> None:
        """`monitor` reads the accounts; `interval`, in seconds, is how long a server's word for a credential holds."""
        super().__init__(topology)
        self.problem: str | None = None
        self._lane = lane
        self._monitor = monitor
        self._interval = interval
        self._proofs: dict[tuple[str, Password], _Proof] = {}  # by Account.name
        self._reader: _Reader | None = None
        self._reading = trio.Lock()
        self._doubt = trio.Event()  # set when all proofs have become void
        self._changes = 0  # how often they have

    # -- what services ask

    def settings(self, user: str) -> User | None:
        return None

    def passwords(self, user: str, proved: Password) -> Passwords:
        return Passwords(proved)

    async def find(self, user: str, client: str, *, encrypted: bool) -> Candidate:
        reader, rows = await self._read_accounts(user)
        hosts = reader.gateway if client in LOOPBACK or not client else (client,)
        account = accounts.account_of(rows, user, hosts, mariadb=reader.mariadb)
        if account is None:
            # As much work as for one that there is.
            known = Known(stored=secrets.token_bytes(20)) if reader.mariadb else Known(learns=True)
            return Candidate(user, client, known)
        obstacle = account.obstacle(encrypted=encrypted)
        if obstacle is not None:
            log.warning("account refused", group=self.topology.name, account=account.name, client=client, why=obstacle)
            if not account.user or account.passwordless:  # whose it is and how it is open is nobody's business
                raise Refused(f"Access denied for user '{user}'@'{client or LOCALHOST}'", code=ErrorCode.ACCESS_DENIED)
            raise Refused(f"gateway: account {account.name}: {obstacle}", code=ErrorCode.NOT_SUPPORTED_AUTH_MODE)
        proved = [password for name, password in self._proofs if name == account.name and isinstance(password, str)]
        native = account.plugin == NATIVE_PASSWORD
        return Candidate(user, client, Known(tuple(proved), account.stored, learns=not native), account)

    async def admit(self, candidate: Candidate, password: Password) -> None:
        account = candidate.account
        if account is None:
            raise denied(candidate.user, candidate.client)
        now = trio.current_time()
        proof = self._proofs.get((account.name, password))
        if proof is not None and proof.account == account and now - proof.at < self._interval:
            proof.used = now
            return
        changes = self._changes
        await self._prove(account, password)
        at = now if changes == self._changes else -math.inf
        self._proofs[account.name, password] = _Proof(account, at, now)
        self._forget_surplus(account)

    def account_changed(self) -> None:
        self._changes += 1
        for proof in self._proofs.values():
            proof.at = -math.inf
        self.proved.clear()
        for member in self.topology.members.values():
            member.pool.retire()
        self._doubt.set()
        self._lane.woke = True

    # -- proofs

    async def run(self) -> None:
        """Proves what is in use again and again, until cancelled."""
        try:
            while self.topology.primary_member is None:
                await self.topology.changed()
            await self._check_rights()
            while True:
                with trio.move_on_after(self._interval):
                    await self._doubt.wait()
                self._doubt = trio.Event()
                if self.problem is not None:
                    await self._check_rights()
                await self._prove_all()
        finally:
            if self._reader is not None:
                self._reader.conversation.close()

    async def _prove_all(self) -> None:
        now = trio.current_time()
        for (name, password), proof in list(self._proofs.items()):
            if now - proof.used > KEPT_SECONDS and not self.connections[proof.account.user]:
                self._proofs.pop((name, password), None)
            elif now - proof.at >= self._interval / 2:
                await self._prove_again(name, password, proof)

    async def _prove_again(self, name: str, password: Password, proof: _Proof) -> None:
        began, changes = trio.current_time(), self._changes
        try:
            await self._prove(proof.account, password)
        except (Refused, BackendRefused) as error:  # dropped if it was; otherwise it is asked again later
            log.info("credential was not proved again", group=self.topology.name, account=name, error=str(error))
        else:
            if changes == self._changes:
                proof.at = began

    async def _prove(self, account: Account, password: Password) -> None:
        """Logs in with it. Raises Unavailable if nobody could be asked, Refused or BackendRefused if it is no good."""
        member = self._who_knows()
        credentials = Credentials(account.user, password, 0, int(Collation.UTF8MB4_GENERAL_CI))
        server = member.pool.server
        try:
            with log_in_errors(server):
                conversation, _ = await log_in(self._lane, server, credentials)
                try:
                    [answer] = await ask(conversation, [query("SELECT CURRENT_USER()")])
                finally:
                    conversation.close()
        except BackendRefused as error:
            if error.code not in _SAYS_NOTHING:
                self._drop(account.name, password, str(error))
            raise
        taken = texts(answer)[0][0]
        if taken != account.name:
            self._drop(account.name, password, f"{member.name} takes the gateway for {taken}")
            log.warning(
                "account cannot be used from here", group=self.topology.name, account=account.name, taken_for=taken
            )
            raise Refused(
                f"{member.name} takes the gateway's connections for {taken}, where a client from this address would be "
                f"{account.name}: the gateway's address has to fit the Host of the account",
                code=ErrorCode.ACCESS_DENIED,
                sqlstate="28000",
            )

    def _drop(self, name: str, password: Password, why: str) -> None:
        """A credential holds no longer: closes its user's connections, and ends the sessions that go on with it."""
        proof = self._proofs.pop((name, password), None)
        if proof is not None:
            log.warning("credential dropped", group=self.topology.name, account=name, why=why)
            self._retire(proof.account.user)
            self._end_sessions(proof.account.user, password, f"gateway: {name} may not log in any more: {why}")

    def _forget_surplus(self, account: Account) -> None:
        """Keeps the last passwords of an account, and a bounded number of proofs."""
        same = [key for key in self._proofs if key[0] == account.name]
        for key in same[:-PASSWORDS_KEPT]:
            del self._proofs[key]
        while len(self._proofs) > PROOFS_KEPT:
            del self._proofs[next(iter(self._proofs))]

    def _who_knows(self) -> SqlMember:
        """The primary, or while there is none a replica, which has the same accounts."""
        primary = self.topology.primary_member
        if primary is not None:
            return primary
        for view in self.topology.snapshot.replicas:
            if view.fault is None:
                return self.topology.members[view.name]
        raise Unavailable(f"no server of group {self.topology.name} can be reached")

    # -- accounts

    async def _check_rights(self) -> None:
        """Finds out whether accounts can be read at all; a person is told what is missing."""
        try:
            await self._read_accounts("")
        except Unavailable as error:
            log.info("accounts cannot be read yet", group=self.topology.name, error=str(error))
        except Refused as error:
            log.error("nobody can log in", group=self.topology.name, error=str(error))

    async def _read_accounts(self, user: str) -> tuple[_Reader, list[Account]]:
        """The accounts of a user and the anonymous ones, as they are now. Raises Unavailable, or Refused."""
        async with self._reading:
            fresh = self._reader is None
            try:
                return await self._try_to_read(user)
            except Unavailable:
                if fresh:
                    raise
                return await self._try_to_read(user)  # the connection had been idle, and is gone

    async def _try_to_read(self, user: str) -> tuple[_Reader, list[Account]]:
        member = self._who_knows()
        address = member.config.address
        reader, self._reader = self._reader, None
        try:
            with log_in_errors(member.pool.server):
                if reader is None or reader.address != address:
                    if reader is not None:
                        reader.conversation.close()
                    reader = await self._open(member)
                found = await _accounts(reader, user)
        except BaseException as error:
            if reader is not None:
                reader.conversation.close()
            if isinstance(error, BackendRefused):
                raise self._no_rights(error, reader) from error
            raise
        self.problem = None
        self._reader = reader
        return reader, found

    def _no_rights(self, error: BackendRefused, reader: _Reader | None) -> Refused:
        if reader is None or error.code not in _NO_PRIVILEGE:
            return Unavailable(f"the accounts cannot be read: {error}")
        grant = accounts.missing_grant(reader.mariadb, reader.monitor)
        self.problem = f'users = "backend" needs a right that the monitor does not have: {grant}'
        return Refused(self.problem)

    async def _open(self, member: SqlMember) -> _Reader:
        address = member.config.address
        conversation, connected = await log_in(self._lane, member.pool.server, self._monitor)
        try:
            [answer] = await ask(conversation, [query("SELECT CURRENT_USER(), USER()")])
            monitor, seen = texts(answer)[0]
            own = conversation.endpoint.sock.getsockname()
        except BaseException:
            conversation.close()
            raise
        host = seen.rpartition("@")[2]
        gateway = {host} | ({"127.0.0.1", "::1"} if host == LOCALHOST and not address.path else set())
        if isinstance(own, tuple) and host not in LOOPBACK:
            gateway.add(str(own[0]))  # a server that resolves names matches the address as well
        return _Reader(conversation, address, "MariaDB" in connected.greeting.server_version, monitor, tuple(gateway))


async def _accounts(reader: _Reader, user: str) -> list[Account]:
    """Raises BackendRefused, OSError, ProtocolError."""
    name = user.encode("utf-8", "replace").hex()
    columns, table = (accounts.MARIADB_COLUMNS, "global_priv") if reader.mariadb else (accounts.MYSQL_COLUMNS, "user")
    statement = f"SELECT {columns} FROM mysql.{table} WHERE User IN ('', _utf8mb4 X'{name}')"
    [answer] = await ask(reader.conversation, [query(statement)])
    rows = texts(answer)
    found = [accounts.mariadb_account(row) if reader.mariadb else accounts.mysql_account(row) for row in rows]
    return [account for account in found if account is not None]
