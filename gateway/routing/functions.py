"""The catalogue of built-in functions: which of them only read, on which server, since which version.

A name that is missing here is a stored or loadable function for all that the gateway knows, and proves nothing. The
version matters for that reason: a name that became a built-in in MariaDB 10.7 may be somebody's stored function, with
side effects, on 10.6.

Sources: MySQL 8.0 to 9.x manual, Built-In Function and Operator Reference; MariaDB documentation, Functions and
Operators; both checked against running servers (tests/routing/test_sql_servers.py).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final


def words(text: str) -> frozenset[str]:
    """The words of a text, for tables that read better as text than as a list of strings."""
    return frozenset(text.split())


OLDEST_MYSQL: Final = (8, 0)
OLDEST_MARIADB: Final = (10, 6)

# Built-ins of every supported MySQL and MariaDB without side effects. Not deterministic ones (NOW, RAND, UUID) are
# among them: they change nothing.
_BOTH: Final = words(
    """
    abs acos adddate addtime aes_decrypt aes_encrypt ascii asin atan atan2 avg benchmark bin bit_and bit_count
    bit_length bit_or bit_xor cast ceil ceiling char char_length character_length charset coalesce coercibility
    collation compress concat concat_ws conv convert convert_tz cos cot count crc32 cume_dist curdate current_date
    current_role current_time current_timestamp current_user curtime database date date_add date_format date_sub
    datediff day dayname dayofmonth dayofweek dayofyear degrees dense_rank elt exp export_set extract extractvalue
    field find_in_set first_value floor format from_base64 from_days from_unixtime get_format greatest group_concat
    hex hour if ifnull inet6_aton inet6_ntoa inet_aton inet_ntoa insert instr interval is_ipv4 is_ipv4_compat
    is_ipv4_mapped is_ipv6 isnull lag last_day last_value lcase lead least left length ln localtime localtimestamp
    locate log log10 log2 lower lpad ltrim make_set makedate maketime max md5 microsecond mid min minute mod month
    monthname name_const nth_value ntile now nullif oct octet_length ord percent_rank period_add period_diff pi
    position pow power quarter quote radians rand random_bytes rank regexp_instr regexp_replace regexp_substr repeat
    replace reverse right round row_number rpad rtrim schema sec_to_time second session_user sha sha1 sha2 sign sin
    sleep soundex space sqrt std stddev stddev_pop stddev_samp str_to_date strcmp subdate substr substring
    substring_index subtime sum sysdate system_user tan time time_format time_to_sec timediff timestamp timestampadd
    timestampdiff to_base64 to_days to_seconds trim truncate ucase uncompress uncompressed_length unhex
    unix_timestamp updatexml upper user utc_date utc_time utc_timestamp uuid values var_pop var_samp variance
    version week weekday weekofyear weight_string year yearweek json_array json_array_append json_array_insert
    json_arrayagg json_contains json_contains_path json_depth json_extract json_insert json_keys json_length
    json_merge json_merge_patch json_merge_preserve json_object json_objectagg json_overlaps json_pretty json_quote
    json_remove json_replace json_search json_set json_table json_type json_unquote json_valid json_value
    geometrycollection linestring multilinestring multipoint multipolygon point polygon mbrcontains mbrdisjoint
    mbrequals mbrintersects mbroverlaps mbrtouches mbrwithin st_area st_asbinary st_asgeojson st_astext st_aswkb
    st_aswkt st_buffer st_centroid st_contains st_convexhull st_crosses st_difference st_dimension st_disjoint
    st_distance st_distance_sphere st_endpoint st_envelope st_equals st_exteriorring st_geomcollfromtext
    st_geomcollfromwkb st_geometrycollectionfromtext st_geometrycollectionfromwkb st_geometryfromtext
    st_geometryfromwkb st_geometryn st_geometrytype st_geomfromgeojson st_geomfromtext st_geomfromwkb
    st_interiorringn st_intersection st_intersects st_isclosed st_isempty st_issimple st_length st_linefromtext
    st_linefromwkb st_linestringfromtext st_linestringfromwkb st_numgeometries st_numinteriorrings st_numpoints
    st_overlaps st_pointfromtext st_pointfromwkb st_pointn st_polyfromtext st_polyfromwkb st_polygonfromtext
    st_polygonfromwkb st_srid st_startpoint st_symdifference st_touches st_union st_within st_x st_y
    """
)

_MYSQL: Final = words(
    """
    any_value bin_to_uuid geomcollection st_numinteriorring format_bytes format_pico_time grouping gtid_subset
    gtid_subtract icu_version is_uuid json_schema_valid json_schema_validation_report json_storage_free
    json_storage_size mbrcoveredby mbrcovers regexp_like roles_graphml st_collect st_frechetdistance st_geohash
    st_hausdorffdistance st_isvalid st_latfromgeohash st_latitude st_lineinterpolatepoint st_lineinterpolatepoints
    st_longfromgeohash st_longitude st_makeenvelope st_mlinefromtext st_mlinefromwkb st_mpointfromtext
    st_mpointfromwkb st_mpolyfromtext st_mpolyfromwkb st_multilinestringfromtext st_multilinestringfromwkb
    st_multipointfromtext st_multipointfromwkb st_multipolygonfromtext st_multipolygonfromwkb st_pointatdistance
    st_pointfromgeohash st_simplify st_swapxy st_transform st_validate statement_digest statement_digest_text
    uuid_to_bin validate_password_strength
    """
)

_MYSQL_SINCE: Final = {
    "string_to_vector": (9, 0), "to_vector": (9, 0), "vector_to_string": (9, 0), "from_vector": (9, 0),
    "vector_dim": (9, 0),
}  # fmt: skip

_MARIADB: Final = words(
    """
    add_months area asbinary astext aswkb aswkt boundary buffer centroid chr column_check column_create
    column_exists column_get column_json column_list contains convexhull crosses decode decode_histogram dimension
    disjoint encode encrypt endpoint envelope equals exteriorring geomcollfromtext geomcollfromwkb
    geometrycollectionfromtext geometrycollectionfromwkb geometryfromtext geometryfromwkb geometryn geometrytype
    geomfromtext geomfromwkb glength interiorringn intersects isclosed isempty isring issimple json_compact
    json_detailed json_exists json_loose json_query lengthb linefromtext linefromwkb linestringfromtext
    linestringfromwkb median mlinefromtext mlinefromwkb mpointfromtext mpointfromwkb mpolyfromtext mpolyfromwkb
    multilinestringfromtext multilinestringfromwkb multipointfromtext multipointfromwkb multipolygonfromtext
    multipolygonfromwkb numgeometries numinteriorrings numpoints nvl nvl2 rownum old_password overlaps password
    percentile_cont percentile_disc pointfromtext pointfromwkb pointn pointonsurface polyfromtext polyfromwkb
    polygonfromtext polygonfromwkb srid st_boundary st_isring st_pointonsurface st_relate startpoint sys_guid
    to_char touches within x y ifnull des_decrypt des_encrypt
    """
)

_MARIADB_SINCE: Final = {
    "json_equals": (10, 7), "json_normalize": (10, 7), "natural_sort_key": (10, 7), "sformat": (10, 7),
    "random_bytes": (10, 10), "crc32c": (10, 8), "json_overlaps": (10, 9), "json_schema_valid": (11, 1),
    "kdf": (11, 3), "date_diff": (11, 3), "json_array_intersect": (11, 4), "json_object_filter_keys": (11, 4),
    "json_object_to_array": (11, 4), "json_key_value": (11, 4), "uuid_v4": (11, 7), "uuid_v7": (11, 7),
    "vec_distance_euclidean": (11, 7), "vec_distance_cosine": (11, 7), "vec_fromtext": (11, 7), "vec_totext": (11, 7),
    "format_bytes": (11, 8), "st_validate": (11, 8), "st_isvalid": (11, 8), "st_geohash": (11, 8),
    "format_pico_time": (11, 0),
}  # fmt: skip

_SPACE_SENSITIVE: Final = words(
    """
    adddate bit_and bit_or bit_xor cast count curdate curtime date_add date_sub extract group_concat max mid min now
    position session_user std stddev stddev_pop stddev_samp subdate substr substring sum sysdate system_user trim
    var_pop var_samp variance json_arrayagg json_objectagg st_collect
    """
)
"""Names that are built-ins only if the parenthesis follows at once, unless IGNORE_SPACE is on (manual: Function Name
Parsing and Resolution); `count (x)` calls a stored function called count."""

_SPACE_SENSITIVE_MARIADB: Final = words(
    """
    cume_dist dense_rank first_value lag last_value lead median nth_value ntile percent_rank percentile_cont
    percentile_disc rank row_number
    """
)
"""The same for MariaDB only (tried: `SELECT rank (1)` calls a stored function); MySQL reserves these words."""

_SHAPES_MARIADB: Final = {
    "point": 2,
    **dict.fromkeys(
        ["geometrycollection", "linestring", "multilinestring", "multipoint", "multipolygon", "polygon"], 1
    ),
}
"""Built-ins of MariaDB that are stored functions with fewer arguments than these (tried: `POINT(1)` calls one)."""

LAST_CONNECTION: Final = frozenset(["last_insert_id", "row_count", "found_rows"])
"""What only the connection of the statement before knows."""

NAMED_LOCK: Final = frozenset(["get_lock"])
RELEASE_LOCK: Final = frozenset(["release_lock", "release_all_locks"])
SEQUENCE: Final = frozenset(["nextval", "setval"])
"""MariaDB's sequences: they write."""

_OWN_REPLICATION: Final = "asks about one server's own replication"
_PRIMARY_BOTH: Final = {
    **dict.fromkeys(["is_free_lock", "is_used_lock"], "asks about named locks, which live on one server"),
    "uuid_short": "makes an id from the server's own number",
    "master_pos_wait": _OWN_REPLICATION,
    "load_file": "reads a file of the server",
    "connection_id": "is the number of one connection",
}
_PRIMARY_MYSQL: Final = {
    **dict.fromkeys(["source_pos_wait", "wait_for_executed_gtid_set"], _OWN_REPLICATION),
    **dict.fromkeys(["ps_current_thread_id", "ps_thread_id"], "asks about a thread of one server"),
}
_PRIMARY_MARIADB: Final = {
    "lastval": "asks the connection for its last sequence value",
    **dict.fromkeys(
        ["master_gtid_wait", "binlog_gtid_pos", "wsrep_last_seen_gtid", "wsrep_last_written_gtid",
         "wsrep_sync_wait_upto_gtid"],
        _OWN_REPLICATION,
    ),
}  # fmt: skip
PRIMARY: Final = {**_PRIMARY_BOTH, **_PRIMARY_MYSQL, **_PRIMARY_MARIADB}
"""Functions without side effects whose answer is the primary's, and why (the end of a sentence). Which of them are
built in is a matter of the server: see `read_functions`."""

PAREN_WORDS: Final = words(
    """
    ALL AND ANY AS BETWEEN BINARY BY CASE CHAR CHARACTER CUBE DATETIME DATE DECIMAL DEC DISTINCT
    DISTINCTROW DIV DOUBLE ELSE EXCEPT EXISTS FLOAT FROM GROUP HAVING IN INDEX INTERSECT INTERVAL IS JOIN KEY LIKE
    LIMIT MATCH MOD NCHAR NOT NUMERIC OFFSET ON OR ORDER OVER PARTITION RANGE REAL REGEXP RLIKE ROW ROWS SELECT
    SIGNED SOME STRAIGHT_JOIN THEN TIME TIMESTAMP UNION UNSIGNED USING VALUE VALUES VARBINARY VARCHAR WHEN WHERE XOR
    YEAR ESCAPE DEFAULT RECURSIVE
    """
)
"""Keywords after which a parenthesis opens that is no call of a stored function. The grammars read an unquoted call of
one only where a word is no keyword at all, so these are safe on both servers (tried on MariaDB 10.11 and MySQL 9.7 with
a stored function of each name)."""

MYSQL_PAREN_WORDS: Final = frozenset(["AGAINST", "COLUMNS", "LATERAL", "OF"])
"""The same for MySQL only."""

AFTER_OPERAND: Final = frozenset(["AGAINST", "COLUMNS"])
"""MATCH (a) AGAINST (...), JSON_TABLE(a, '$' COLUMNS (...)): keywords that MariaDB lets be names of stored functions.
Right after a parenthesis or a literal no expression can begin, so that there they are keywords."""


_UNTIL_MYSQL: Final = dict.fromkeys(["md5", "sha", "sha1"], (9, 6))
"""MySQL 9.6 took these out of the server into a component (tried on 9.7): there the name may be a stored function's."""


@lru_cache(maxsize=64)
def read_functions(mariadb: bool, version: tuple[int, int]) -> frozenset[str]:
    """The built-ins, lower case, that a statement may call and still be a read on this server or any newer one."""
    names = set(_BOTH) | set(_MARIADB if mariadb else _MYSQL)
    since = _MARIADB_SINCE if mariadb else _MYSQL_SINCE
    oldest = max(version, OLDEST_MARIADB if mariadb else OLDEST_MYSQL)
    for name, first in since.items():
        if oldest >= first:
            names.add(name)
        else:
            names.discard(name)
    if not mariadb:
        names -= {name for name, gone in _UNTIL_MYSQL.items() if oldest >= gone}
    own = _PRIMARY_MARIADB if mariadb else _PRIMARY_MYSQL
    return frozenset(names | LAST_CONNECTION | _PRIMARY_BOTH.keys() | own.keys())


@lru_cache(maxsize=2)
def space_sensitive(mariadb: bool) -> frozenset[str]:
    """The names that are built-ins only if no space stands before the parenthesis, lower case."""
    return _SPACE_SENSITIVE | _SPACE_SENSITIVE_MARIADB if mariadb else _SPACE_SENSITIVE


def fewest_arguments(name: str, mariadb: bool) -> int:
    """With fewer arguments than this a call of the built-in `name` calls a stored function instead."""
    return _SHAPES_MARIADB.get(name, 0) if mariadb else 0
