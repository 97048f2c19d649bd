//! A leak that PostgreSQL really has, as SQL.
//!
//! plpgsql keeps what it compiled of a function in a session-wide table, and looks at an entry again
//! only when the same function is called. A dropped function is never called again, so its entry,
//! its parse tree and the plans of its expressions stay until the session ends. Every release up to
//! 18 does it.

/// One round: creates a function, which gets a new OID, calls it and drops it. The function asks for
/// several plans, so that a round leaks some tens of kilobytes.
pub const LEAKING_ROUND: &str = "\
create function pgleak_demo(factor int) returns bigint language plpgsql as $body$
declare
    total bigint := 0;
    item record;
begin
    for item in select n, n * 2 as doubled from generate_series(1, 4) as n loop
        total := total + item.doubled * factor;
        if total > 1000 then
            total := total - (select count(*) from pg_class where relname = 'pg_proc');
        end if;
    end loop;
    return total;
end
$body$;
select pgleak_demo(3);
drop function pgleak_demo(int);
";
