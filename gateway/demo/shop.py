"""The demo's shop: its tables, its sample rows, and its SQL clients, who check every answer that they can.

Every statement also asks for @@server_id, and every row is written with it: who served is what the servers themselves
say, not what the gateway claims.
"""

from __future__ import annotations

import random
from typing import Any, Final

import pymysql
import pymysql.connections

from gateway.demo.clients import Client, check
from gateway.demo.gateway_process import REPORT, GatewayServer
from gateway.demo.mysql_servers import APP, Account, MysqlGroup

CUSTOMERS: Final = 8
PRODUCTS: Final = 40
OPENING_BALANCE: Final = 10_000_000
"""Cents; more than anybody spends in a demo."""

PRIMARY_ID: Final = 1
"""The primary's @@server_id; the replicas' are 2 and 3 (mysql_group)."""

TABLES: Final = ("customers", "accounts", "products", "orders")
ANSWER_SECONDS: Final = 30

SCHEMA: Final = (
    "CREATE TABLE customers (id INT PRIMARY KEY, name VARCHAR(40) NOT NULL, visits INT NOT NULL, "
    "written_on INT NOT NULL)",
    "CREATE TABLE accounts (customer INT PRIMARY KEY, balance BIGINT NOT NULL)",
    "CREATE TABLE products (id INT PRIMARY KEY, name VARCHAR(40) NOT NULL, price INT NOT NULL)",
    "CREATE TABLE orders (id BIGINT PRIMARY KEY AUTO_INCREMENT, customer INT NOT NULL, product INT NOT NULL, "
    "quantity INT NOT NULL, total INT NOT NULL, written_on INT NOT NULL, KEY (customer))",
)


def open_shop(group: MysqlGroup) -> None:
    """Makes the shop at the primary, and the account of whoever makes reports; waits until the replicas have it."""
    with group.primary.admin() as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE USER '{REPORT.user}'@'%' IDENTIFIED BY '{REPORT.password}'")
        cursor.execute(f"GRANT SELECT ON shop.* TO '{REPORT.user}'@'%'")
        cursor.execute("USE shop")
        for statement in SCHEMA:
            cursor.execute(statement)
        customers = [(number, f"Customer {number}", PRIMARY_ID) for number in range(1, CUSTOMERS + 1)]
        cursor.executemany("INSERT INTO customers VALUES (%s, %s, 0, %s)", customers)
        accounts = [(number, OPENING_BALANCE) for number in range(1, CUSTOMERS + 1)]
        cursor.executemany("INSERT INTO accounts VALUES (%s, %s)", accounts)
        products = [(number, f"Product {number}", 100 * number) for number in range(1, PRODUCTS + 1)]
        cursor.executemany("INSERT INTO products VALUES (%s, %s, %s)", products)
    group.wait_caught_up()


class ShopClient(Client):
    """A client with a connection to the gateway's MySQL listener, in autocommit mode."""

    account = APP

    def __init__(self, name: str, pause: float, gateway: GatewayServer) -> None:
        super().__init__(name, pause)
        self._gateway = gateway
        self._connection: pymysql.connections.Connection[Any] | None = None

    def connect(self) -> None:
        self._connection = connect(self._gateway, self.account)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def run(self, statement: str, *arguments: object) -> int:
        """Runs a statement that writes; the last insert id."""
        assert self._connection is not None
        with self._connection.cursor() as cursor:
            cursor.execute(statement, arguments)
            return int(cursor.lastrowid)

    def read(self, statement: str, *arguments: object) -> tuple[Any, ...]:
        """The only row of a SELECT, whose last column is @@server_id, without it; counts who served."""
        assert self._connection is not None
        with self._connection.cursor() as cursor:
            cursor.execute(statement, arguments)
            rows = cursor.fetchall()
        check(len(rows) == 1, self.tally, "reads give what was asked for", f"{len(rows)} rows for {statement}")
        *row, server = rows[0]
        self.tally.reads[server] += 1
        return tuple(row)


def connect(gateway: GatewayServer, account: Account) -> pymysql.connections.Connection[Any]:
    """A connection of an account's to the gateway's MySQL listener."""
    return pymysql.connect(
        host=gateway.host,
        port=gateway.port,
        user=account.user,
        password=account.password,
        database="shop",
        autocommit=True,  # PyMySQL's default is off, and then every statement belongs to a transaction of the primary
        connect_timeout=ANSWER_SECONDS,
        read_timeout=ANSWER_SECONDS,
        write_timeout=ANSWER_SECONDS,
    )


class Shopper(ShopClient):
    """A customer who orders, and reads back at once what came of it. Nobody else writes this customer's rows."""

    def __init__(self, number: int, pause: float, gateway: GatewayServer) -> None:
        super().__init__(f"shopper {number}", pause, gateway)
        self._customer = number
        self._random = random.Random(number)
        self._orders = 0
        self._visits = 0
        self._balance = OPENING_BALANCE

    def step(self) -> None:
        self._order()
        self._visit()
        for _ in range(3):
            product = self._random.randint(1, PRODUCTS)
            price, _ = self.read("SELECT price, name, @@server_id FROM products WHERE id = %s", product)
            check(price == 100 * product, self.tally, "reads give what was asked for", f"product {product}: {price}")

    def _order(self) -> None:
        product, quantity = self._random.randint(1, PRODUCTS), self._random.randint(1, 3)
        total = 100 * product * quantity
        self.run("START TRANSACTION")
        order = self.run(
            "INSERT INTO orders (customer, product, quantity, total, written_on) VALUES (%s, %s, %s, %s, @@server_id)",
            self._customer, product, quantity, total,
        )  # fmt: skip
        self.run("UPDATE accounts SET balance = balance - %s WHERE customer = %s", total, self._customer)
        self.run("COMMIT")
        self._orders += 1
        self._balance -= total
        self.tally.writes[PRIMARY_ID] += 2
        fresh = "reads after writes are never stale"
        (read,) = self.read("SELECT SUM(total), @@server_id FROM orders WHERE id = %s", order)
        check(read == total, self.tally, fresh, f"order {order} has the total {read}, not {total}")
        (count,) = self.read("SELECT COUNT(*), @@server_id FROM orders WHERE customer = %s", self._customer)
        check(count == self._orders, self.tally, fresh, f"{self.name} sees {count} orders of {self._orders}")
        self._balance_is_exact()

    def _balance_is_exact(self) -> None:
        before = self.tally.reads[PRIMARY_ID]
        (balance,) = self.read("SELECT balance, @@server_id FROM accounts WHERE customer = %s", self._customer)
        exact = "balances are read at the primary, as the rules say"
        check(balance == self._balance, self.tally, exact, f"{balance} instead of {self._balance}")
        check(self.tally.reads[PRIMARY_ID] == before + 1, self.tally, exact, "a replica served it")

    def _visit(self) -> None:
        self._visits += 1
        self.run(
            "UPDATE customers SET visits = %s, written_on = @@server_id WHERE id = %s", self._visits, self._customer
        )
        self._visits_are_fresh()
        # changes nothing, so that its answer has no position: the session is unresolved until a later look
        self.run("UPDATE customers SET visits = %s WHERE id = %s", self._visits, self._customer)
        self.tally.writes[PRIMARY_ID] += 2
        self._visits_are_fresh()

    def _visits_are_fresh(self) -> None:
        (visits,) = self.read("SELECT visits, @@server_id FROM customers WHERE id = %s", self._customer)
        words = f"{self.name} reads {visits} visits of {self._visits}"
        check(visits == self._visits, self.tally, "reads after writes are never stale", words)


class Visitor(ShopClient):
    """Somebody who only looks at products, over a new connection each time."""

    def __init__(self, number: int, pause: float, gateway: GatewayServer) -> None:
        super().__init__(f"visitor {number}", pause, gateway)
        self._random = random.Random(1000 + number)

    def connect(self) -> None:
        """Each step has its own connection."""

    def step(self) -> None:
        super().connect()
        for _ in range(5):
            first = self._random.randint(1, PRODUCTS - 9)
            (count,) = self.read(
                "SELECT COUNT(*), @@server_id FROM products WHERE id BETWEEN %s AND %s", first, first + 9
            )
            check(count == 10, self.tally, "reads give what was asked for", f"{count} products of 10")
        self.close()


class Reporter(ShopClient):
    """Whoever makes the reports: long reads, which the rules let lag."""

    account = REPORT

    def __init__(self, pause: float, gateway: GatewayServer) -> None:
        super().__init__("reporter", pause, gateway)

    def step(self) -> None:
        count, customers = self.read("SELECT COUNT(*), COUNT(DISTINCT customer), @@server_id FROM orders")
        check(
            customers <= min(count, CUSTOMERS), self.tally, "reads give what was asked for",
            f"{customers} customers have {count} orders",
        )  # fmt: skip


def shop_clients(gateway: GatewayServer) -> list[ShopClient]:
    """The clients of the shop: about 500 statements a second together."""
    shoppers = [Shopper(number, 0.1, gateway) for number in (1, 2, 3)]
    return [*shoppers, *(Visitor(number, 0.2, gateway) for number in (1, 2)), Reporter(0.1, gateway)]
