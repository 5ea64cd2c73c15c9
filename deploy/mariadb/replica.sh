#!/bin/sh
# Makes a server of the compose stack a replica of PRIMARY_HOST, by GTID, once, when its data folder is new.
# It begins to replicate at its next start, which the official image does right after this script.
set -eu

quoted() {
    printf "'%s'" "$(printf '%s' "$1" | sed "s/[\\\\']/\\\\&/g")"
}

MYSQL_PWD="$MARIADB_ROOT_PASSWORD" mariadb --protocol=socket --user=root <<SQL
CHANGE MASTER TO MASTER_HOST = $(quoted "$PRIMARY_HOST"), MASTER_PORT = ${PRIMARY_PORT:-3306},
    MASTER_USER = 'replication', MASTER_PASSWORD = $(quoted "$REPLICATION_PASSWORD"),
    MASTER_USE_GTID = slave_pos, MASTER_CONNECT_RETRY = 1;
SQL
