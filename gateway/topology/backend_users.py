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
the account's row or any account has changed, and in the background while the credential is in use. A refusal drops it,
closes the connections of its user, and ends between transactions the sessions that came in by it: by this proof, not by
this user name, since an account of the same name from another Host is somebody else's. Only the primary refuses: a
replica may not know the account yet. And only in words about the credential: what says that a server is full or going
down does not count, nor does a refusal that a later log-in has overtaken.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from gateway.backends.mysql import Credentials, Passwords
from gateway.backends.mysql_log_in import ask, log_in, log_in_errors
from gateway.backends.mysql_server import MysqlServer
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
PASSWORDS_KEPT: Final = (
    2  # per account, beside those of open sessions: MySQL's dual passwords (RETAIN CURRENT PASSWORD)
)
ACCOUNTS_KEPT: Final = 10_000  # with proofs that no session needs
LOOPBACK: Final = frozenset({LOCALHOST, "127.0.0.1", "::1", "::ffff:127.0.0.1"})
# What says that a credential is no good: wrong (1698: where a plugin takes no password), no such account from here
# (1130), locked (3118; MariaDB 4151), expired (1862, and 1820 at its first statement), or of a plugin that the gateway
# cannot answer. An account that is blocked because somebody guesses at it (3955, 4150) ends nobody's sessions, as on
# the server.
_NO_GOOD: Final = frozenset(
    {ErrorCode.ACCESS_DENIED, ErrorCode.NOT_SUPPORTED_AUTH_MODE, 1698, 1130, 3118, 4151, 1862, 1820}
)
_NO_PRIVILEGE: Final = frozenset({1142, 1044, 1143, 1227})

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Proof:
    """That a server accepted a password for an account. Times are of Trio's clock."""

    account: Account  # as it was then
    passwords: Passwords  # what the sessions have that came in by it
    at: float  # when the last log-in with it began, -inf: to be asked again
    accepted: float  # when that log-in had succeeded
    used: float  # when somebody came in by it last


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
        self._proofs: dict[str, dict[Password, _Proof]] = {}  # by Account.name
        self._reader: _Reader | None = None
        self._reading = trio.Lock()
        self._doubt = trio.Event()  # set when all proofs have become void
        self._changes = 0  # how often they have

    # -- what services ask

    def settings(self, user: str) -> User | None:
        return None

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
        proved = tuple(password for password in self._proofs.get(account.name, ()) if isinstance(password, str))
        native = account.plugin == NATIVE_PASSWORD
        return Candidate(user, client, Known(proved, account.stored, learns=not native), account)

    async def admit(self, candidate: Candidate, password: Password) -> Passwords:
        account = candidate.account
        if account is None:
            raise denied(candidate.user, candidate.client)
        now = trio.current_time()
        proof = self._proof(account.name, password)
        if proof is not None and proof.account == account and now - proof.at < self._interval:
            proof.used = now
            return proof.passwords
        at = await self._prove(account, password)
        proof = self._proof(account.name, password)  # another log-in may have made it meanwhile
        passwords = Passwords(password) if proof is None else proof.passwords
        proved = self._proofs.setdefault(account.name, {})
        proved.pop(password, None)  # the one proved last comes last
        proved[password] = _Proof(account, passwords, at, trio.current_time(), now)
        self._forget_surplus(proved)
        return passwords

    def holds(self, candidate: Candidate, passwords: Passwords) -> bool:
        assert candidate.account is not None  # it was admitted
        proved = self._proofs.get(candidate.account.name, {})
        return any(proof.passwords is passwords for proof in proved.values())

    def account_changed(self) -> None:
        self._changes += 1
        for _, _, proof in self._all_proofs():
            proof.at = -math.inf
        self.proved.clear()
        for member in self.topology.members.values():
            member.pool.retire()
        self._ask_again()

    # -- proofs

    def _ask_again(self) -> None:
        self._doubt.set()
        self._lane.woke = True

    def _proof(self, name: str, password: Password) -> _Proof | None:
        return self._proofs.get(name, {}).get(password)

    def _all_proofs(self) -> list[tuple[str, Password, _Proof]]:
        return [(name, password, proof) for name, kept in self._proofs.items() for password, proof in kept.items()]

    def _forget(self, name: str, password: Password) -> None:
        proved = self._proofs[name]
        del proved[password]
        if not proved:
            del self._proofs[name]

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
        for name, password, proof in self._all_proofs():
            now = trio.current_time()
            if self._proof(name, password) is not proof:
                continue  # dropped or made anew, while others were asked for
            if now - proof.used > KEPT_SECONDS and not self._sessions[proof.passwords]:
                self._forget(name, password)
            elif now - proof.at >= self._interval / 2:
                await self._prove_again(name, password, proof)

    async def _prove_again(self, name: str, password: Password, proof: _Proof) -> None:
        try:
            proof.at = await self._prove(proof.account, password)
        except (Refused, BackendRefused) as error:  # dropped if it was; otherwise it is asked again later
            log.info("credential was not proved again", group=self.topology.name, account=name, error=str(error))
        else:
            proof.accepted = trio.current_time()

    async def _prove(self, account: Account, password: Password) -> float:
        """Logs in with it; returns the proof's `at`.

        Raises Unavailable if nobody could be asked, Refused or BackendRefused if it is no good.
        """
        began, changes = trio.current_time(), self._changes
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
            if error.code in _NO_GOOD:
                self._refused(member, account, password, began, str(error))
            raise
        taken = texts(answer)[0][0]
        if taken != account.name:
            self._refused(member, account, password, began, f"{member.name} takes the gateway for {taken}")
            log.warning(
                "account cannot be used from here", group=self.topology.name, account=account.name, taken_for=taken
            )
            raise Refused(
                f"{member.name} takes the gateway's connections for {taken}, where a client from this address would be "
                f"{account.name}: the gateway's address has to fit the Host of the account",
                code=ErrorCode.ACCESS_DENIED,
                sqlstate="28000",
            )
        if changes == self._changes:
            return began
        self._ask_again()  # accounts have changed while the server was asked
        return -math.inf

    def _refused(self, member: SqlMember, account: Account, password: Password, began: float, why: str) -> None:
        """A log-in that began then was refused.

        If that is the last word on a credential, its user's connections close, and the sessions that came in by it end.
        """
        name = account.name
        proof = self._proof(name, password)
        if proof is None or member is not self.topology.primary_member:
            return
        if proof.accepted >= began:  # another one was accepted meanwhile: which was the later to be judged?
            proof.at = -math.inf
            self._ask_again()
            return
        log.warning("credential dropped", group=self.topology.name, account=name, why=why)
        self._forget(name, password)
        self._retire(account.user)
        self._end_sessions(proof.passwords, f"gateway: {name} may not log in any more: {why}")

    def _forget_surplus(self, proved: dict[Password, _Proof]) -> None:
        """Keeps the last passwords of an account and of a bounded number of accounts, beside those of open sessions."""
        unused = [password for password, proof in proved.items() if not self._sessions[proof.passwords]]
        for password in unused[:-PASSWORDS_KEPT]:
            del proved[password]
        if len(self._proofs) > ACCOUNTS_KEPT:
            for name, kept in self._proofs.items():
                if not any(self._sessions[proof.passwords] for proof in kept.values()):
                    del self._proofs[name]
                    break

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
                    reader = await _open(self._lane, member.pool.server, self._monitor)
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


async def _accounts(reader: _Reader, user: str) -> list[Account]:
    """Raises BackendRefused, OSError, ProtocolError."""
    name = user.encode("utf-8", "replace").hex()
    columns, table = (accounts.MARIADB_COLUMNS, "global_priv") if reader.mariadb else (accounts.MYSQL_COLUMNS, "user")
    statement = f"SELECT {columns} FROM mysql.{table} WHERE User IN ('', _utf8mb4 X'{name}')"
    [answer] = await ask(reader.conversation, [query(statement)])
    rows = texts(answer)
    found = [accounts.mariadb_account(row) if reader.mariadb else accounts.mysql_account(row) for row in rows]
    return [account for account in found if account is not None]


async def _open(lane: Lane, server: MysqlServer, monitor: Credentials) -> _Reader:
    """Raises BackendRefused, OSError, ProtocolError."""
    conversation, connected = await log_in(lane, server, monitor)
    try:
        # Not the rows of the first look for ever, whatever the server's default is.
        _, answer = await ask(conversation, [query("SET autocommit = 1"), query("SELECT CURRENT_USER(), USER()")])
        account, seen = texts(answer)[0]
        own = conversation.endpoint.sock.getsockname()
    except BaseException:
        conversation.close()
        raise
    host = seen.rpartition("@")[2]
    gateway = {host} | ({"127.0.0.1", "::1"} if host == LOCALHOST and not server.address.path else set())
    if isinstance(own, tuple) and host not in LOOPBACK:
        gateway.add(str(own[0]))  # a server that resolves names matches the address as well
    mariadb = "MariaDB" in connected.greeting.server_version
    return _Reader(conversation, server.address, mariadb, account, tuple(gateway))


async def missing_grants(lane: Lane, server: MysqlServer, monitor: Credentials) -> list[str]:
    """The GRANT statements that `monitor` lacks to read a server's accounts. Raises BackendRefused, Unavailable."""
    with log_in_errors(server):
        reader = await _open(lane, server, monitor)
        try:
            await _accounts(reader, "")
        except BackendRefused as error:
            if error.code not in _NO_PRIVILEGE:
                raise
            return [accounts.missing_grant(reader.mariadb, reader.monitor)]
        finally:
            reader.conversation.close()
    return []
