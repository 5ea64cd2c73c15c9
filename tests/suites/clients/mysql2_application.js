// An application on npm's mysql2 that writes down every value, column, count and error it is given.
//
//     node mysql2_application.js HOST PORT USER PASSWORD DATABASE ROWS
//
// Two runs on equal servers print the same bytes. mysql2 is looked for where NODE_PATH says.
'use strict';

const crypto = require('crypto');
const mysql = require('mysql2');

const [host, port, user, password, database, rows] = process.argv.slice(2);

function shown(value) {
  if (Buffer.isBuffer(value)) {
    const hash = crypto.createHash('sha256').update(value).digest('hex');
    return value.length <= 64 ? `x'${value.toString('hex')}'` : `${value.length} bytes, sha256 ${hash}`;
  }
  if (value instanceof Date) return `date ${value.getTime()}`;
  const text = JSON.stringify(value);
  return text !== undefined && text.length > 300
    ? `${text.length} characters, sha256 ${crypto.createHash('sha256').update(text).digest('hex')}` : `${text}`;
}

function report(result, fields) {
  if (Array.isArray(result) && Array.isArray(fields) && Array.isArray(fields[0])) {
    result.forEach((each, at) => report(each, fields[at]));
  } else if (Array.isArray(result) && fields) {
    console.log('columns', JSON.stringify(fields.map((one) => [one.name, one.columnType ?? one.type, one.flags, one.characterSet])));
    for (const row of result) console.log('row', row.map(shown).join(', '));
  } else if (Array.isArray(result)) {
    result.forEach((each, at) => report(each, fields && fields[at]));
  } else if (result) {
    console.log('count', result.affectedRows, result.insertId, result.info, result.warningStatus, result.changedRows);
  }
}

const connection = mysql.createConnection({
  host, port: Number(port), user, password, database, rowsAsArray: true, multipleStatements: true,
  supportBigNumbers: true, bigNumberStrings: true, dateStrings: false, timezone: 'Z',
});

function ask(method, sql, values) {
  return new Promise((resolve) => {
    console.log('--', method, JSON.stringify(sql.slice(0, 100)), shown(values ?? null));
    connection[method](sql, values, (error, result, fields) => {
      if (error) console.log('error', error.errno, error.code, error.sqlState, error.sqlMessage);
      else report(result, fields);
      resolve();
    });
  });
}

function bigResult() {
  const numbers = Array.from(String(rows - 1), (_, power) => power);
  const number = numbers.map((power) => `d${power}.n * ${10 ** power}`).join(' + ');
  const tables = numbers.map((power) => `digits AS d${power}`).join(', ');
  const hash = crypto.createHash('sha256');
  let count = 0;
  return new Promise((resolve, reject) => {
    connection.query(`SELECT ${number} AS n, CONCAT('row ', ${number}), IF(d0.n = 7, NULL, d0.n / 3) FROM ${tables} ORDER BY n LIMIT ${rows}`)
      .on('result', (row) => { count += 1; hash.update(JSON.stringify(row)); })
      .on('error', reject)
      .on('end', () => { console.log('big result', count, hash.digest('hex')); resolve(); });
  });
}

async function course() {
  const query = (sql, values) => ask('query', sql, values);
  const execute = (sql, values) => ask('execute', sql, values);
  const every = [18446744073709551615n.toString(), '-1.5', 1.5e300, '2024-02-29', new Date(1709251199999), '-838:59:58', 1999,
    '漢字 😀 \'"\\ \0\n', Buffer.from(Array.from({ length: 256 }, (_, at) => at)), 'two', true, '{"a": [1, null, "é"]}'];
  await query('SELECT DATABASE(), @@autocommit, @@character_set_client, @@time_zone');
  await query(`CREATE TABLE kinds (id INT PRIMARY KEY AUTO_INCREMENT, a BIGINT UNSIGNED, b DECIMAL(30,10), c DOUBLE, e DATE,
    f DATETIME(3), g TIME, i YEAR, k VARCHAR(200), l BLOB, n ENUM('one','two'), p TINYINT(1), s JSON) CHARACTER SET utf8mb4`);
  const marks = every.map(() => '?').join(', ');
  for (const method of [query, execute]) {
    await method(`INSERT INTO kinds (a, b, c, e, f, g, i, k, l, n, p, s) VALUES (${marks})`, every);
    await method(`INSERT INTO kinds (a, b, c, e, f, g, i, k, l, n, p, s) VALUES (${marks})`, every.map(() => null));
    await method('SELECT * FROM kinds ORDER BY id', []);
    await method('SELECT id FROM kinds WHERE k = ? OR a = ? ORDER BY id', [every[7], every[0]]);
    await method('SELECT ?, ?, ?', [1, 'two', null]);
    await method('SELECT nothing FROM kinds WHERE id > ?', [0]);
  }
  await query('BEGIN');
  await execute('UPDATE kinds SET k = ? WHERE id = ?', ['changed', 1]);
  await execute('SELECT k FROM kinds WHERE id = ?', [1]);
  await query('ROLLBACK');
  await execute('SELECT k FROM kinds WHERE id = ?', [1]);
  await query("SELECT 1 / 0, CAST('12x' AS SIGNED)");
  await query('SHOW WARNINGS');
  await query('CREATE PROCEDURE several(n INT) BEGIN SELECT n; SELECT n + 1, NULL; END');
  await query('CALL several(5)');
  await execute('CALL several(?)', [6]);
  await query('SELECT 1; SELECT 2, 3; UPDATE kinds SET k = NULL WHERE id = 4');
  await query("SET @x = 5, time_zone = '+03:00'");
  await execute('SELECT @x, @@time_zone, LAST_INSERT_ID()', []);
  await query('CREATE TABLE digits (n INT PRIMARY KEY)');
  await query('INSERT INTO digits VALUES (0),(1),(2),(3),(4),(5),(6),(7),(8),(9)');
  await bigResult();
  connection.end();
}

course().catch((error) => { console.error(error); process.exit(1); });
