use super::{Dialect::*, *};

const ALL: [Dialect; 3] = [Postgres, MySql, Sqlite];

#[test]
fn only_a_select_on_its_own_may_be_repeated() {
    for (sql, expected) in [
        ("select 1", true),
        ("  SELECT * from t;", true),
        ("select(1)", true),
        ("selection", false),
        ("select 1; delete from t", false),
        ("insert into t select 1", false),
        ("with x as (delete from t returning 1) select * from x", false),
        ("/* hint */ -- why\n select 1", true),
        ("/* select", false),
        ("select * into copy from t", false),
        ("select 'x into y; delete'", true),
        ("select 1 -- then; insert into\n;", true),
        ("select into_ from t", true),
        ("", false),
    ] {
        for dialect in ALL {
            assert_eq!(Meaning::of(sql, dialect).selects, expected, "{sql} {dialect:?}");
        }
    }
    assert!(!Meaning::of("select 1 /*! into outfile 'x' */", MySql).selects);
}

#[test]
fn what_only_reads_is_known_by_its_words() {
    for (sql, expected) in [
        ("select 1", true),
        ("with recursive n(i) as (select 1 union select i + 1 from n) table n", true),
        ("with x as (select replace(n, 'a', 'b') from t) select * from x;", true),
        ("with x as (select 'delete') select * from x", true),
        ("with x as (select 1) insert into t select * from x returning n", false),
        ("with x as (select 1) replace into t select * from x returning n", false),
        ("with x as (select 1) update t set n = 1 returning n", false),
        ("with x as (select 1) delete from t returning n", false),
        ("with x as (select 1) select * from x; delete from t", false),
        ("VALUES (1), (2)", true),
        ("explain select 1", true),
        ("show tables", true),
        ("insert into t values (1) returning n", false),
        ("pragma optimize", false),
        ("call p()", false),
    ] {
        for dialect in ALL {
            assert_eq!(Meaning::of(sql, dialect).reads, expected, "{sql} {dialect:?}");
        }
    }
    assert!(!Meaning::of("with x as (select 1) select * from x", MySql).selects);
}

#[test]
fn what_changes_the_session_is_known_by_its_first_words() {
    for (sql, alone, inside) in [
        ("select 1", false, false),
        ("set search_path = x", true, true),
        ("insert into t values ('set x; set y')", false, false),
        ("select 1; set x = 1", true, true),
        ("create temporary table t (n int)", true, true),
        ("create table t (n int)", false, false),
        ("BEGIN", true, false),
        ("/* x */ start transaction", true, false),
        ("update t set begin = 1", false, false),
        ("listen channel", true, true),
        ("create or replace local temp view v as select 1", true, true),
        ("create index temp on t (n)", true, true),
        ("discard all", true, true),
        ("reset statement_timeout", true, true),
        ("reset_all()", false, false),
        ("-- tune; see docs\nset work_mem = '1GB'", true, true),
        ("/* ; */ select ';' -- ;\n; set x = 1", true, true),
    ] {
        for dialect in ALL {
            let Meaning { changes, begins, .. } = Meaning::of(sql, dialect);
            assert_eq!((changes || begins, changes), (alone, inside), "{sql} {dialect:?}");
        }
    }
    for (sql, expected) in [
        ("SET LOCAL x = 1", [false, true]),
        ("set transaction read only", [false, true]),
        ("set constraints all deferred", [false, true]),
        ("flush tables with read lock", [false, true]),
        ("handler t open", [false, true]),
        ("backup stage start", [false, true]),
        ("/*!40014 SET foreign_key_checks = 0 */", [false, true]),
        ("/*M!100100 set x = 1 */", [false, true]),
        ("set statement x = 1 for select 1", [true, false]),
        ("set statement x = 1 for set y = 1", [true, true]),
        ("# why\nset global x = 1", [false, true]),
        ("select '\\'; set x = '", [true, false]),
        ("load data infile 'x' into table t", [true, false]),
        ("declare c cursor with hold for select 1", [true, false]),
        ("declare c cursor for with x as (select 1) select * from x", [false, false]),
        ("select 1 as n into temp t", [true, false]),
        ("with x as (select 1) select * into local temporary t from x", [true, false]),
        ("select 1 into kept", [false, false]),
        ("/* a /* b */ ; set x = 1; */ select 1", [false, true]),
        ("select $$;set x = 1$$, $x$;set $$ x;$x$, $1", [false, true]),
        ("select E'\\';set x', e'';", [false, false]),
        ("if a then set x = 1; end if", [false, true]),
        ("while a do create temporary table t (n int); end while", [false, true]),
        ("begin not atomic set x = 1; end", [false, true]),
        ("begin not atomic declare exit handler for not found set x = 1; end", [false, true]),
        ("if a then select 1; end if", [false, false]),
        ("create table pg_temp.t (n int)", [true, true]),
        ("create table if not exists pg_temp.t (n int)", [true, true]),
        ("create or replace function pg_temp.f() returns int language sql return 1", [true, true]),
        ("create or replace recursive view pg_temp.v (n) as values (1)", [true, true]),
        ("select 1 as n into table pg_temp.t", [true, false]),
    ] {
        let changes = [Postgres, MySql].map(|dialect| Meaning::of(sql, dialect).changes);
        assert_eq!(changes, expected, "{sql}");
    }
}

#[test]
fn a_begin_on_its_own_is_told_from_one_that_goes_on() {
    for (sql, expected) in [
        ("begin", true),
        ("BEGIN IMMEDIATE;", true),
        ("/* why */ start transaction read only", true),
        ("savepoint here", true),
        ("xa start 'x'", true),
        ("XA BEGIN 'x'", true),
        ("xa recover", false),
        ("xa commit 'x'", false),
        ("xa rollback 'x'", false),
        ("start slave", false),
        ("begin; insert into t values (1); commit", false),
        ("begin not atomic insert into t values (1); end", false),
        ("select 1", false),
        ("", false),
    ] {
        for dialect in ALL {
            assert_eq!(Meaning::of(sql, dialect).only_begins, expected, "{sql} {dialect:?}");
        }
    }
}

#[test]
fn what_may_stop_halfway_is_known_by_its_parts() {
    for (sql, by_parts, as_one) in [
        ("insert into t values (1)", false, false),
        ("insert into t values (1);", false, false),
        ("insert into t values (';')", false, false),
        ("pragma max_page_count = 1; insert into t values (1)", false, false),
        ("insert into t values (1); select 1", true, false),
        ("insert into t values (1); insert into u values (1)", true, false),
        ("insert into t values (1); commit; insert into u values (1)", true, true),
        ("insert into t values (1); set x = 1; update t set n = 1", true, false),
        ("call move_money(1)", true, true),
        ("-- nightly; moves money\ncall move_money()", true, true),
        ("/* nightly */ DO $$ begin end $$", true, true),
    ] {
        for (dialect, expected) in [(Sqlite, by_parts), (MySql, by_parts), (Postgres, as_one)] {
            assert_eq!(Meaning::of(sql, dialect).halfway, expected, "{sql} {dialect:?}");
        }
    }
}

#[test]
fn what_follows_a_body_is_seen_and_what_is_in_it_is_not() {
    const TRIGGER: &str = "create trigger if not exists x after insert on t begin \
        update u set n = case when n then 1 end; delete from u; end";
    const FUNCTION: &str = "create or replace function f() returns int begin atomic \
        insert into t values (1); select 1; end";
    const PROCEDURE: &str = "create or replace definer = root procedure p() l: begin \
        declare continue handler for not found begin end; \
        declare exit handler for sqlexception begin rollback; end; \
        if a then commit; else begin set @x = 1; end; end if; \
        while b do insert into x values (1); end while; end l";
    for (dialect, body) in [(Sqlite, TRIGGER), (Postgres, FUNCTION), (MySql, PROCEDURE)] {
        let answers = |after: &str| {
            let meaning = Meaning::of(&format!("{body}{after}"), dialect);
            (meaning.halfway, meaning.changes, meaning.begins, meaning.ends)
        };
        let (by_parts, commits) = (dialect != Postgres, dialect == MySql);
        for (after, expected) in [
            ("", (false, false, false, commits)),
            (";", (false, false, false, commits)),
            ("; insert into a values (1)", (by_parts, false, false, commits)),
            ("; set x = 1", (by_parts, true, false, commits)),
            ("; commit", (true, false, false, true)),
            ("; begin; insert into a values (1)", (true, false, true, true)),
            ("; create procedure q() begin select 1; end", (by_parts, false, false, commits)),
        ] {
            assert_eq!(answers(after), expected, "{body}{after}");
        }
    }
    for sql in [
        "create table event (id int, begin timestamptz); set x = y; commit",
        "create procedure p() begin end; set x = y; commit",
        "create unique index event on t (begin); set x = y; end; commit",
        "create procedure p(begin int) language sql as 'x'; set x = y; commit",
    ] {
        for dialect in ALL {
            let Meaning { changes, ends, .. } = Meaning::of(sql, dialect);
            assert!(changes && ends, "{sql} {dialect:?}");
        }
    }
}

#[test]
fn what_ends_a_transaction_is_known_in_the_words_of_its_database() {
    for (sql, expected) in [
        ("commit", [true, true, true]),
        ("insert into t values (1); COMMIT AND CHAIN;", [true, true, true]),
        ("/* x */ rollback", [true, true, true]),
        ("rollback work to savepoint x", [false, false, false]),
        ("begin", [true, true, true]),
        ("start transaction", [true, true, true]),
        ("end", [true, false, true]),
        ("abort", [true, false, true]),
        ("prepare transaction 'x'", [true, false, false]),
        ("prepare x as select 1", [false, false, false]),
        ("truncate t", [false, true, false]),
        ("create table temp (n int)", [false, true, false]),
        ("create or replace temporary table t (n int)", [false, false, false]),
        ("drop table t", [false, true, false]),
        ("drop temporary table t", [false, false, false]),
        ("create or replace temporary sequence s", [false, true, false]),
        ("drop temporary sequence s", [false, false, false]),
        ("create temporary table t (sequence int)", [false, false, false]),
        ("create temporary table t as select sequence from x", [false, false, false]),
        ("set statement x = 'for', y = 1 for truncate t", [false, true, false]),
        ("set statement x = 1 for insert into t values (1)", [false, false, false]),
        ("set statement x = 1; commit", [true, true, true]),
        ("execute immediate 'truncate t'", [false, true, false]),
        ("begin not atomic truncate t; end", [true, true, true]),
        ("begin not atomic l: loop commit; end loop; end", [true, true, true]),
        ("begin not atomic select 1; l: begin truncate t; end; end", [true, true, true]),
        ("begin not atomic select 1; l: begin delete from t; end; end", [true, false, true]),
        (
            "begin not atomic declare exit handler for sqlexception rollback; end",
            [true, true, true],
        ),
        ("begin not atomic declare exit handler for not found begin commit; end; end", [true; 3]),
        ("begin not atomic declare x cursor for select handler; end", [true, false, true]),
        (
            "begin not atomic declare a int; declare exit handler for 1062 rollback to x; end",
            [true, false, true],
        ),
        (
            "begin not atomic declare exit handler for 1062 update t set reset = 1; end",
            [true, false, true],
        ),
        ("if a then select 1; elseif b then begin commit; end; end if", [true, true, true]),
        ("while a do insert into t values (1); end while", [true, false, true]),
        ("/*!40000 alter table t disable keys */", [false, true, false]),
        ("analyze table t", [false, true, false]),
        ("analyze format = json select 1", [false, false, false]),
        ("analyze no_write_to_binlog table t", [false, true, false]),
        ("cache index t in hot", [false, true, false]),
        ("change master to master_host = 'x'", [false, true, false]),
        ("check table t", [false, true, false]),
        ("backup stage start", [false, true, false]),
        ("load index into cache t", [false, true, false]),
        ("load data infile 'x' into table t", [false, false, false]),
        ("set password for x = 'y'", [false, true, false]),
        ("set default role none", [false, true, false]),
        ("set session autocommit = 1", [false, true, false]),
        ("set @password = 1", [false, false, false]),
        ("create table t (temporary bool)", [false, true, false]),
        ("create index temporary on t (n)", [false, true, false]),
        ("drop prepare x", [false, false, false]),
        ("begin not atomic insert into t values (1); end", [true, false, true]),
        ("begin not atomic insert into t values (1); commit; end", [true, true, true]),
        ("begin not atomic select 1; begin delete from t; end; end", [true, false, true]),
        ("BEGIN WORK", [true, true, true]),
        ("insert into t values (E'it''s \\'x; commit; \\'')", [false, false, true]),
        ("insert into t values ('it''s x; commit; '''), ('')", [false, false, false]),
        ("insert into t values ('first; commit to it')", [false, false, false]),
        ("insert into \"a; commit\" values (1)", [false, false, false]),
        ("do $$ begin perform 1; end $$", [false, false, true]),
        ("create trigger x after insert on t begin delete from u; end", [false, true, false]),
        ("create function f() returns int begin atomic select 1; end", [false, true, false]),
        ("select case when n then 1 end from t", [false, false, false]),
    ] {
        assert_eq!(ALL.map(|dialect| Meaning::of(sql, dialect).ends), expected, "{sql}");
    }
}
