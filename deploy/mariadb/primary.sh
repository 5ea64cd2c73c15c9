#!/bin/sh
# Makes the accounts and the database of the compose stack at the primary, once, when its data folder is new.
# MariaDB's official image runs it while a server without a network is up; being executable, it gets a process of its
# own. All of it is in the binary log, so that the replicas get it by replicating.
set -eu

quoted() {
    printf "'%s'" "$(printf '%s' "$1" | sed "s/[\\\\']/\\\\&/g")"
}

MYSQL_PWD="$MARIADB_ROOT_PASSWORD" mariadb --protocol=socket --user=root <<SQL
CREATE DATABASE shop;

CREATE USER 'replication'@'%' IDENTIFIED BY $(quoted "$REPLICATION_PASSWORD");
GRANT REPLICATION SLAVE ON *.* TO 'replication'@'%';

-- the gateway's monitor: sees positions, replication, and what views, routines and triggers do
CREATE USER 'gateway'@'%' IDENTIFIED BY $(quoted "$GATEWAY_MONITOR_PASSWORD");
GRANT SLAVE MONITOR, BINLOG MONITOR, SELECT, SHOW VIEW, TRIGGER ON *.* TO 'gateway'@'%';

CREATE USER 'app'@'%' IDENTIFIED BY $(quoted "$APP_PASSWORD");
GRANT ALL PRIVILEGES ON shop.* TO 'app'@'%';

CREATE USER 'report'@'%' IDENTIFIED BY $(quoted "$REPORT_PASSWORD");
GRANT SELECT ON shop.* TO 'report'@'%';
SQL
