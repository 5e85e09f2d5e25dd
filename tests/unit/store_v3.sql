PRAGMA user_version = 3;
BEGIN TRANSACTION;
CREATE TABLE answer (key TEXT PRIMARY KEY, request TEXT NOT NULL, status INTEGER NOT NULL, body TEXT NOT NULL);
INSERT INTO "answer" VALUES('key','digest',200,'{}');
CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT INTO "counter" VALUES('generation',3);
CREATE TABLE ejected (service TEXT NOT NULL, color TEXT NOT NULL, address TEXT NOT NULL);
INSERT INTO "ejected" VALUES('shop','blue','127.0.0.1:9101');
CREATE TABLE freeze (service TEXT PRIMARY KEY, reason TEXT NOT NULL);
INSERT INTO "freeze" VALUES('shop','inventory');
CREATE TABLE manifest (digest TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO "manifest" VALUES('dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','{"a":1}');
INSERT INTO "manifest" VALUES('ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','{"a":2}');
CREATE TABLE operation (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, service TEXT NOT NULL,
    source TEXT NOT NULL, target TEXT NOT NULL, weight INTEGER NOT NULL, state TEXT NOT NULL,
    generation INTEGER NOT NULL, reason TEXT NOT NULL, actor TEXT NOT NULL,
    gate TEXT, error TEXT, notes TEXT NOT NULL, timings TEXT NOT NULL,
    started_at REAL NOT NULL, ended_at REAL, intent_before TEXT, intent_after TEXT
, snapshot INTEGER, drain TEXT, draining INTEGER NOT NULL DEFAULT 0);
INSERT INTO "operation" VALUES(1,'switch','shop','blue','green',100,'done',2,'release 7','ann',NULL,NULL,'[]','{"gates": 0.0, "render": 0.0, "commit": 0.0, "verify": 0.0, "total": 2.5}',1000.5,1001.0,'["blue", 100, 1, false]','["green", 100, 2, false]',1,'{"color":"blue","open":2,"workers":[{"pid":7,"old":true,"open":2}],"state":"draining","most":2,"closed":0,"drained_ms":null,"note":null}',1);
INSERT INTO "operation" VALUES(2,'switch','shop','blue','green',100,'refused',2,'release 7','ann','["health", "blue is unhealthy"]',NULL,'[]','{"gates": 0.0, "render": 0.0, "commit": 0.0, "verify": 0.0, "total": 0.0}',1000.5,NULL,NULL,NULL,NULL,NULL,0);
INSERT INTO "operation" VALUES(3,'weight','shop','green','blue',10,'open',3,'release 7','ann',NULL,NULL,'[]','{"gates": 0.0, "render": 0.0, "commit": 0.0, "verify": 0.0, "total": 0.0}',1000.5,NULL,'["green", 100, 2, false]','["green", 90, 3, true]',2,NULL,0);
CREATE TABLE released (service TEXT PRIMARY KEY, at REAL NOT NULL);
INSERT INTO "released" VALUES('blog',900.0);
CREATE TABLE service (
    name TEXT PRIMARY KEY, live TEXT NOT NULL, weight INTEGER NOT NULL,
    generation INTEGER NOT NULL, weighted INTEGER NOT NULL
);
INSERT INTO "service" VALUES('shop','green',100,2,0);
CREATE TABLE snapshot (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, purpose TEXT NOT NULL,
    digest TEXT NOT NULL, tree TEXT NOT NULL, restores INTEGER
);
INSERT INTO "snapshot" VALUES(1,1000.0,'switch','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',NULL);
INSERT INTO "snapshot" VALUES(2,1000.0,'switch','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',NULL);
CREATE INDEX operation_by_service ON operation (service, id);
CREATE INDEX operation_open ON operation (id) WHERE state = 'open';
CREATE INDEX operation_by_snapshot ON operation (snapshot) WHERE snapshot IS NOT NULL;
CREATE INDEX operation_draining ON operation (id) WHERE draining = 1;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('snapshot',2);
INSERT INTO "sqlite_sequence" VALUES('operation',3);
COMMIT;
