CREATE TABLE shop.customers (id INT PRIMARY KEY, name VARCHAR(40), balance INT)
CREATE TABLE shop.orders (id INT PRIMARY KEY, customer INT, amount INT, placed DATETIME, FOREIGN KEY (customer) REFERENCES shop.customers (id) ON DELETE CASCADE ON UPDATE CASCADE)
CREATE TABLE shop.items (id INT PRIMARY KEY, orders INT, FOREIGN KEY (orders) REFERENCES shop.orders (id) ON DELETE CASCADE ON UPDATE RESTRICT)
CREATE TABLE other.notes (id INT PRIMARY KEY, item INT, FOREIGN KEY (item) REFERENCES shop.items (id) ON DELETE SET NULL ON UPDATE RESTRICT)
CREATE TABLE shop.audit (id INT AUTO_INCREMENT PRIMARY KEY, what VARCHAR(40))
CREATE TABLE shop.totals (customer INT PRIMARY KEY, amount INT)
CREATE TABLE other.audit (what VARCHAR(40))
CREATE TABLE shop.Audit (what VARCHAR(40))
CREATE FUNCTION shop.balance_of(c INT) RETURNS INT NOT DETERMINISTIC MODIFIES SQL DATA RETURN (SELECT balance FROM customers WHERE id = c)
CREATE FUNCTION shop.twice(n INT) RETURNS INT DETERMINISTIC NO SQL RETURN n * 2
CREATE FUNCTION shop.grade(n INT) RETURNS VARCHAR(10) DETERMINISTIC BEGIN DECLARE g VARCHAR(10) DEFAULT 'none'; IF n > 100 THEN SET g = 'gold'; ELSEIF n > 10 THEN SET g = CONCAT('sil', 'ver'); ELSE SET g = LOWER('TIN'); END IF; CASE WHEN n < 0 THEN SET g = CASE n WHEN -1 THEN 'debt' ELSE 'ruin' END; ELSE SET n = n + 1; END CASE; RETURN g; END
CREATE FUNCTION shop.sum_up(c INT) RETURNS INT READS SQL DATA BEGIN DECLARE done INT DEFAULT 0; DECLARE one, total INT DEFAULT 0; DECLARE k CURSOR FOR SELECT amount FROM orders WHERE customer = c; DECLARE CONTINUE HANDLER FOR NOT FOUND SET done = 1; OPEN k; again: LOOP FETCH k INTO one; IF done THEN LEAVE again; END IF; SET total = total + one; END LOOP again; CLOSE k; WHILE total > 1000000 DO SET total = total - twice(1); END WHILE; RETURN total; END
CREATE FUNCTION shop.through(c INT) RETURNS INT READS SQL DATA RETURN balance_of(c) + shop.twice(c)
CREATE FUNCTION shop.writes_log(n INT) RETURNS INT NO SQL DETERMINISTIC BEGIN INSERT INTO audit (what) VALUES ('logs'); RETURN n; END
CREATE FUNCTION shop.remembers(n INT) RETURNS INT NO SQL DETERMINISTIC BEGIN SET @remembered = n; RETURN n; END
CREATE FUNCTION shop.recalls(n INT) RETURNS INT NO SQL RETURN n + @remembered
CREATE FUNCTION shop.locks(n INT) RETURNS INT NO SQL RETURN GET_LOCK('a', 0)
CREATE FUNCTION shop.calls_writes(n INT) RETURNS INT NO SQL DETERMINISTIC RETURN writes_log(n)
CREATE FUNCTION shop.for_update(c INT) RETURNS INT READS SQL DATA BEGIN DECLARE b INT; SELECT balance INTO b FROM customers WHERE id = c FOR UPDATE; RETURN b; END
CREATE FUNCTION shop.stores(c INT) RETURNS INT READS SQL DATA BEGIN SELECT balance INTO @stored FROM customers WHERE id = c; RETURN @stored; END
CREATE FUNCTION shop.mode(n INT) RETURNS INT NO SQL BEGIN SET sql_big_selects = 1; RETURN n; END
CREATE FUNCTION other.twice(n INT) RETURNS INT NO SQL DETERMINISTIC BEGIN INSERT INTO audit VALUES ('twice'); RETURN n * 2; END
CREATE PROCEDURE shop.note(w VARCHAR(40)) BEGIN INSERT INTO audit (what) VALUES (w); END
CREATE VIEW shop.rich AS SELECT id, name FROM shop.customers WHERE balance > 1000
CREATE VIEW shop.named (nr, called) AS SELECT r.id, UPPER(r.name) FROM shop.rich r
CREATE VIEW shop.ranked AS SELECT id, twice(amount) AS double_amount, grade(amount) AS grade FROM shop.orders
CREATE VIEW shop.swapped (balance, id) AS SELECT id, balance FROM shop.customers
CREATE VIEW shop.balances AS SELECT o.id AS o, balance_of(o.customer) AS b FROM shop.orders o
CREATE VIEW shop.per_customer AS SELECT customer, COUNT(*) AS n, SUM(amount) AS total FROM shop.orders GROUP BY customer HAVING COUNT(*) > 0
CREATE VIEW shop.everyone AS SELECT id FROM shop.customers UNION ALL SELECT id FROM shop.orders
CREATE VIEW shop.logging AS SELECT id, writes_log(id) AS l FROM shop.customers
CREATE VIEW shop.logging_twice AS SELECT l FROM shop.logging
CREATE VIEW shop.remembering AS SELECT remembers(id) AS r FROM shop.customers
CREATE VIEW shop.here AS SELECT CONNECTION_ID() AS c
CREATE VIEW other.rich AS SELECT shop.writes_log(1) AS l
CREATE VIEW other.orders AS SELECT id, amount FROM shop.orders
CREATE TRIGGER shop.order_in AFTER INSERT ON shop.orders FOR EACH ROW INSERT INTO totals VALUES (NEW.customer, NEW.amount) ON DUPLICATE KEY UPDATE amount = totals.amount + NEW.amount
CREATE TRIGGER shop.order_up BEFORE UPDATE ON shop.orders FOR EACH ROW BEGIN IF NEW.amount < 0 THEN SET NEW.amount = 0; CALL note('negative'); END IF; END
CREATE TRIGGER shop.total_up AFTER UPDATE ON shop.totals FOR EACH ROW INSERT INTO other.audit VALUES ('total')
CREATE TRIGGER shop.audit_in BEFORE INSERT ON shop.audit FOR EACH ROW SET @audited = NEW.what
