/*
 * A standby's redo that leaks: each record of our own kind looks up the path of a database and forgets
 * it, as Greenplum's ao_truncate_replay did (greenplum-db/gpdb issue 11202). For PostgreSQL 15, which
 * knows resource managers of extensions; with the server's own headers.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xloginsert.h"
#include "catalog/pg_tablespace_d.h"
#include "common/relpath.h"
#include "fmgr.h"
#include "miscadmin.h"

PG_MODULE_MAGIC;

#define FRAME __attribute__((noinline, noclone, used, visibility("default")))

FRAME void
planted_truncate_replay(XLogReaderState *record)
{
	char	   *path = GetDatabasePath(XLogRecGetInfo(record) + 1, DEFAULTTABLESPACE_OID);

	if (path[0] == '\0')
		elog(ERROR, "no path");
}

FRAME void
planted_redo(XLogReaderState *record)
{
	planted_truncate_replay(record);
	__asm__ volatile("" ::: "memory");
}

static void
planted_desc(StringInfo buf, XLogReaderState *record)
{
}

static const char *
planted_identify(uint8 info)
{
	return "PLANTED";
}

static RmgrData planted_rmgr = {
	.rm_name = "planted",
	.rm_redo = planted_redo,
	.rm_desc = planted_desc,
	.rm_identify = planted_identify,
};

void		_PG_init(void);

void
_PG_init(void)
{
	if (process_shared_preload_libraries_in_progress)
		RegisterCustomRmgr(RM_EXPERIMENTAL_ID, &planted_rmgr);
}

/* Writes so many records, and waits until they are on disk, from where they are sent. */
PG_FUNCTION_INFO_V1(planted_records);
Datum
planted_records(PG_FUNCTION_ARGS)
{
	int64		count = PG_GETARG_INT64(0);
	XLogRecPtr	last = InvalidXLogRecPtr;

	for (int64 i = 0; i < count; i++)
	{
		char		byte = 0;

		XLogBeginInsert();
		XLogRegisterData(&byte, sizeof byte);
		last = XLogInsert(RM_EXPERIMENTAL_ID, 0);
	}
	XLogFlush(last);
	PG_RETURN_INT64(count);
}
