-- What a callboard of layout 1 left behind, as sqlite3's iterdump writes it: see test_sqlite_upgrade.py.
BEGIN TRANSACTION;
CREATE TABLE counter (
    serial INTEGER NOT NULL,     -- the last one given
    fence INTEGER NOT NULL,
    pos INTEGER NOT NULL,
    lost_pos INTEGER NOT NULL    -- the highest one that was removed
);
INSERT INTO "counter" VALUES(6,4,14,0);
CREATE TABLE event (
    pos INTEGER PRIMARY KEY,     -- order of commit, over all jobs
    serial INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    origin INTEGER NOT NULL,     -- of the connection that committed it
    body BLOB NOT NULL
);
INSERT INTO "event" VALUES(1,1,1,1,CAST('{"job_id":"00000000-0000-0000-0000-000000000001","seq":1,"since":0,"type":"status","at_ms":1700000000000,"status":"Queued","name":"send","queue":"default","owner":"anna","changes":{"id":"00000000-0000-0000-0000-000000000001","name":"send","queue":"default","status":"Queued","retryCount":0,"maxRetries":2,"attempt":0,"createdAt":"2023-11-14T22:13:20.000Z","startedAt":null,"completedAt":null,"lastUpdatedAt":"2023-11-14T22:13:20.000Z","result":null,"error":null,"seq":1,"progress":null,"scheduledFor":null,"cancelRequested":false,"priority":0,"location":null},"log":null}' AS BLOB));
INSERT INTO "event" VALUES(2,2,1,1,CAST('{"job_id":"00000000-0000-0000-0000-000000000002","seq":1,"since":0,"type":"status","at_ms":1700000000000,"status":"Queued","name":"send","queue":"default","owner":null,"changes":{"id":"00000000-0000-0000-0000-000000000002","name":"send","queue":"default","status":"Queued","retryCount":0,"maxRetries":0,"attempt":0,"createdAt":"2023-11-14T22:13:20.000Z","startedAt":null,"completedAt":null,"lastUpdatedAt":"2023-11-14T22:13:20.000Z","result":null,"error":null,"seq":1,"progress":null,"scheduledFor":null,"cancelRequested":false,"priority":0,"location":null},"log":null}' AS BLOB));
INSERT INTO "event" VALUES(3,3,1,1,CAST('{"job_id":"00000000-0000-0000-0000-000000000003","seq":1,"since":0,"type":"status","at_ms":1700000000000,"status":"Queued","name":"send","queue":"default","owner":null,"changes":{"id":"00000000-0000-0000-0000-000000000003","name":"send","queue":"default","status":"Queued","retryCount":0,"maxRetries":0,"attempt":0,"createdAt":"2023-11-14T22:13:20.000Z","startedAt":null,"completedAt":null,"lastUpdatedAt":"2023-11-14T22:13:20.000Z","result":null,"error":null,"seq":1,"progress":null,"scheduledFor":null,"cancelRequested":false,"priority":0,"location":null},"log":null}' AS BLOB));
INSERT INTO "event" VALUES(4,4,1,1,CAST('{"job_id":"00000000-0000-0000-0000-000000000004","seq":1,"since":0,"type":"status","at_ms":1700000000000,"status":"Queued","name":"send","queue":"default","owner":null,"changes":{"id":"00000000-0000-0000-0000-000000000004","name":"send","queue":"default","status":"Queued","retryCount":0,"maxRetries":0,"attempt":0,"createdAt":"2023-11-14T22:13:20.000Z","startedAt":null,"completedAt":null,"lastUpdatedAt":"2023-11-14T22:13:20.000Z","result":null,"error":null,"seq":1,"progress":null,"scheduledFor":null,"cancelRequested":false,"priority":0,"location":null},"log":null}' AS BLOB));
INSERT INTO "event" VALUES(5,5,1,1,CAST('{"job_id":"00000000-0000-0000-0000-000000000005","seq":1,"since":0,"type":"status","at_ms":1700000000000,"status":"Scheduled","name":"send","queue":"default","owner":null,"changes":{"id":"00000000-0000-0000-0000-000000000005","name":"send","queue":"default","status":"Scheduled","retryCount":0,"maxRetries":0,"attempt":0,"createdAt":"2023-11-14T22:13:20.000Z","startedAt":null,"completedAt":null,"lastUpdatedAt":"2023-11-14T22:13:20.000Z","result":null,"error":null,"seq":1,"progress":null,"scheduledFor":"2023-11-14T22:13:29.000Z","cancelRequested":false,"priority":0,"location":null},"log":null}' AS BLOB));
INSERT INTO "event" VALUES(6,6,1,1,CAST('{"job_id":"00000000-0000-0000-0000-000000000006","seq":1,"since":0,"type":"status","at_ms":1700000000000,"status":"Queued","name":"send","queue":"other","owner":null,"changes":{"id":"00000000-0000-0000-0000-000000000006","name":"send","queue":"other","status":"Queued","retryCount":0,"maxRetries":0,"attempt":0,"createdAt":"2023-11-14T22:13:20.000Z","startedAt":null,"completedAt":null,"lastUpdatedAt":"2023-11-14T22:13:20.000Z","result":null,"error":null,"seq":1,"progress":null,"scheduledFor":null,"cancelRequested":false,"priority":3,"location":null},"log":null}' AS BLOB));
INSERT INTO "event" VALUES(7,1,2,1,CAST('{"job_id":"00000000-0000-0000-0000-000000000001","seq":2,"since":1,"type":"status","at_ms":1700000001000,"status":"InProgress","name":"send","queue":"default","owner":"anna","changes":{"id":"00000000-0000-0000-0000-000000000001","status":"InProgress","attempt":1,"startedAt":"2023-11-14T22:13:21.000Z","lastUpdatedAt":"2023-11-14T22:13:21.000Z","seq":2},"log":null}' AS BLOB));
INSERT INTO "event" VALUES(8,2,2,1,CAST('{"job_id":"00000000-0000-0000-0000-000000000002","seq":2,"since":1,"type":"status","at_ms":1700000001000,"status":"InProgress","name":"send","queue":"default","owner":null,"changes":{"id":"00000000-0000-0000-0000-000000000002","status":"InProgress","attempt":1,"startedAt":"2023-11-14T22:13:21.000Z","lastUpdatedAt":"2023-11-14T22:13:21.000Z","seq":2},"log":null}' AS BLOB));
INSERT INTO "event" VALUES(9,3,2,1,CAST('{"job_id":"00000000-0000-0000-0000-000000000003","seq":2,"since":1,"type":"status","at_ms":1700000001000,"status":"InProgress","name":"send","queue":"default","owner":null,"changes":{"id":"00000000-0000-0000-0000-000000000003","status":"InProgress","attempt":1,"startedAt":"2023-11-14T22:13:21.000Z","lastUpdatedAt":"2023-11-14T22:13:21.000Z","seq":2},"log":null}' AS BLOB));
INSERT INTO "event" VALUES(10,4,2,1,CAST('{"job_id":"00000000-0000-0000-0000-000000000004","seq":2,"since":1,"type":"status","at_ms":1700000001000,"status":"InProgress","name":"send","queue":"default","owner":null,"changes":{"id":"00000000-0000-0000-0000-000000000004","status":"InProgress","attempt":1,"startedAt":"2023-11-14T22:13:21.000Z","lastUpdatedAt":"2023-11-14T22:13:21.000Z","seq":2},"log":null}' AS BLOB));
INSERT INTO "event" VALUES(11,1,3,1,CAST('{"job_id":"00000000-0000-0000-0000-000000000001","seq":3,"since":2,"type":"status","at_ms":1700000001500,"status":"Scheduled","name":"send","queue":"default","owner":"anna","changes":{"id":"00000000-0000-0000-0000-000000000001","status":"Scheduled","retryCount":1,"lastUpdatedAt":"2023-11-14T22:13:21.500Z","error":{"code":"OOPS","message":"it broke","type":"ValueError","retryable":true},"seq":3,"scheduledFor":"2023-11-14T22:13:21.600Z"},"log":null}' AS BLOB));
INSERT INTO "event" VALUES(12,2,3,1,CAST('{"job_id":"00000000-0000-0000-0000-000000000002","seq":3,"since":2,"type":"progress","at_ms":1700000001000,"status":"InProgress","name":"send","queue":"default","owner":null,"changes":{"id":"00000000-0000-0000-0000-000000000002","lastUpdatedAt":"2023-11-14T22:13:21.000Z","seq":3,"progress":{"percent":50,"message":null,"data":[1]}},"log":null}' AS BLOB));
INSERT INTO "event" VALUES(13,2,4,1,CAST('{"job_id":"00000000-0000-0000-0000-000000000002","seq":4,"since":3,"type":"status","at_ms":1700000002000,"status":"Completed","name":"send","queue":"default","owner":null,"changes":{"id":"00000000-0000-0000-0000-000000000002","status":"Completed","completedAt":"2023-11-14T22:13:22.000Z","lastUpdatedAt":"2023-11-14T22:13:22.000Z","result":"done","seq":4},"log":null}' AS BLOB));
INSERT INTO "event" VALUES(14,3,3,1,CAST('{"job_id":"00000000-0000-0000-0000-000000000003","seq":3,"since":2,"type":"status","at_ms":1700000002000,"status":"Queued","name":"send","queue":"default","owner":null,"changes":{"id":"00000000-0000-0000-0000-000000000003","status":"Queued","lastUpdatedAt":"2023-11-14T22:13:22.000Z","seq":3},"log":null}' AS BLOB));
CREATE TABLE job (
    serial INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    queue TEXT NOT NULL,
    status TEXT NOT NULL,
    priority INTEGER NOT NULL,
    due_ms INTEGER,              -- of a Scheduled job that no claim has looked at since it fell due
    ready INTEGER NOT NULL,      -- 1: a claim may take it; 2: set aside, because its record cannot be read
    lease_ms INTEGER,            -- end of the lease of an InProgress job
    holder INTEGER,              -- origin of the connection that claimed it
    key TEXT UNIQUE,
    owner TEXT,
    completed_ms INTEGER,
    record BLOB NOT NULL
);
INSERT INTO "job" VALUES(1,'00000000-0000-0000-0000-000000000001','send','default','Scheduled',0,1700000001600,0,NULL,NULL,'k','anna',NULL,CAST('{"id":"00000000-0000-0000-0000-000000000001","serial":1,"seq":3,"name":"send","queue":"default","status":"Scheduled","priority":0,"max_retries":2,"retry_count":1,"attempt":1,"max_lost_leases":3,"lost_leases":0,"timeout_seconds":null,"created_ms":1700000000000,"updated_ms":1700000001500,"started_ms":1700000001000,"completed_ms":null,"due_ms":1700000001600,"fence":0,"worker":null,"cancel_requested":false,"progress":null,"result":null,"error":{"code":"OOPS","message":"it broke","type":"ValueError","retryable":true},"location":null,"owner":"anna","key":"k","fingerprint":null,"schema":1}' AS BLOB));
INSERT INTO "job" VALUES(2,'00000000-0000-0000-0000-000000000002','send','default','Completed',0,NULL,0,NULL,NULL,NULL,NULL,1700000002000,CAST('{"id":"00000000-0000-0000-0000-000000000002","serial":2,"seq":4,"name":"send","queue":"default","status":"Completed","priority":0,"max_retries":0,"retry_count":0,"attempt":1,"max_lost_leases":3,"lost_leases":0,"timeout_seconds":null,"created_ms":1700000000000,"updated_ms":1700000002000,"started_ms":1700000001000,"completed_ms":1700000002000,"due_ms":null,"fence":0,"worker":null,"cancel_requested":false,"progress":{"percent":50.0,"message":null,"data":[1]},"result":"done","error":null,"location":null,"owner":null,"key":null,"fingerprint":null,"schema":1}' AS BLOB));
INSERT INTO "job" VALUES(3,'00000000-0000-0000-0000-000000000003','send','default','Queued',0,NULL,1,NULL,NULL,NULL,NULL,NULL,CAST('{"id":"00000000-0000-0000-0000-000000000003","serial":3,"seq":3,"name":"send","queue":"default","status":"Queued","priority":0,"max_retries":0,"retry_count":0,"attempt":1,"max_lost_leases":3,"lost_leases":0,"timeout_seconds":null,"created_ms":1700000000000,"updated_ms":1700000002000,"started_ms":1700000001000,"completed_ms":null,"due_ms":null,"fence":0,"worker":null,"cancel_requested":false,"progress":null,"result":null,"error":null,"location":null,"owner":null,"key":null,"fingerprint":null,"schema":1}' AS BLOB));
INSERT INTO "job" VALUES(4,'00000000-0000-0000-0000-000000000004','send','default','InProgress',0,NULL,0,1700000031000,1,NULL,NULL,NULL,CAST('{"id":"00000000-0000-0000-0000-000000000004","serial":4,"seq":2,"name":"send","queue":"default","status":"InProgress","priority":0,"max_retries":0,"retry_count":0,"attempt":1,"max_lost_leases":3,"lost_leases":0,"timeout_seconds":null,"created_ms":1700000000000,"updated_ms":1700000001000,"started_ms":1700000001000,"completed_ms":null,"due_ms":null,"fence":4,"worker":"old","cancel_requested":false,"progress":null,"result":null,"error":null,"location":null,"owner":null,"key":null,"fingerprint":null,"schema":1}' AS BLOB));
INSERT INTO "job" VALUES(5,'00000000-0000-0000-0000-000000000005','send','default','Scheduled',0,1700000009000,0,NULL,NULL,NULL,NULL,NULL,CAST('{"id":"00000000-0000-0000-0000-000000000005","serial":5,"seq":1,"name":"send","queue":"default","status":"Scheduled","priority":0,"max_retries":0,"retry_count":0,"attempt":0,"max_lost_leases":3,"lost_leases":0,"timeout_seconds":null,"created_ms":1700000000000,"updated_ms":1700000000000,"started_ms":null,"completed_ms":null,"due_ms":1700000009000,"fence":0,"worker":null,"cancel_requested":false,"progress":null,"result":null,"error":null,"location":null,"owner":null,"key":null,"fingerprint":null,"schema":1}' AS BLOB));
INSERT INTO "job" VALUES(6,'00000000-0000-0000-0000-000000000006','send','other','Queued',3,NULL,1,NULL,NULL,NULL,NULL,NULL,CAST('{"id":"00000000-0000-0000-0000-000000000006","serial":6,"seq":1,"name":"send","queue":"other","status":"Queued","priority":3,"max_retries":0,"retry_count":0,"attempt":0,"max_lost_leases":3,"lost_leases":0,"timeout_seconds":null,"created_ms":1700000000000,"updated_ms":1700000000000,"started_ms":null,"completed_ms":null,"due_ms":null,"fence":0,"worker":null,"cancel_requested":false,"progress":null,"result":null,"error":null,"location":null,"owner":null,"key":null,"fingerprint":null,"schema":1}' AS BLOB));
CREATE TABLE request (serial INTEGER PRIMARY KEY, body BLOB NOT NULL);
INSERT INTO "request" VALUES(1,CAST('{"body":{"number":1},"headers":[["x-n","1"],["x-n","again"]],"route_params":{},"query_params":[]}' AS BLOB));
INSERT INTO "request" VALUES(2,CAST('{"body":{"number":2},"headers":[["x-n","2"],["x-n","again"]],"route_params":{},"query_params":[]}' AS BLOB));
INSERT INTO "request" VALUES(3,CAST('{"body":{"number":3},"headers":[["x-n","3"],["x-n","again"]],"route_params":{},"query_params":[]}' AS BLOB));
INSERT INTO "request" VALUES(4,CAST('{"body":{"number":4},"headers":[["x-n","4"],["x-n","again"]],"route_params":{},"query_params":[]}' AS BLOB));
INSERT INTO "request" VALUES(5,CAST('{"body":{"number":5},"headers":[["x-n","5"],["x-n","again"]],"route_params":{},"query_params":[]}' AS BLOB));
INSERT INTO "request" VALUES(6,CAST('{"body":{"number":6},"headers":[["x-n","6"],["x-n","again"]],"route_params":{},"query_params":[]}' AS BLOB));
CREATE TABLE tally (queue TEXT NOT NULL, status TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (queue, status)) WITHOUT ROWID;
INSERT INTO "tally" VALUES('default','Completed',1);
INSERT INTO "tally" VALUES('default','InProgress',1);
INSERT INTO "tally" VALUES('default','Queued',1);
INSERT INTO "tally" VALUES('default','Scheduled',2);
INSERT INTO "tally" VALUES('other','Queued',1);
CREATE TABLE worker (origin INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE);
INSERT INTO "worker" VALUES(1,'old');
CREATE INDEX job_ready ON job (queue, name, priority DESC, serial) WHERE ready = 1;
CREATE INDEX job_aside ON job (serial) WHERE ready = 2;
CREATE INDEX job_due ON job (due_ms) WHERE due_ms IS NOT NULL;
CREATE INDEX job_lease ON job (lease_ms, serial, holder) WHERE lease_ms IS NOT NULL;
CREATE INDEX job_ended ON job (completed_ms) WHERE completed_ms IS NOT NULL;
CREATE INDEX job_owner ON job (owner, serial) WHERE owner IS NOT NULL;
CREATE INDEX event_of_job ON event (serial, seq);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('worker',1);
COMMIT;
