/*
 * The server's interface, as far as planted.c uses it.
 *
 * With PLANTED_HEADERS it comes from the server's own headers. Without, for builds that have none, it is
 * declared here; PG_MAJOR (12 to 18) then chooses what differs between the majors. What is declared is the same
 * in all of them on 64-bit Linux, but for the magic block.
 */
#ifndef PLANTED_SERVER_H
#define PLANTED_SERVER_H

#ifdef PLANTED_HEADERS

#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

PG_MODULE_MAGIC;

#define PG_MAJOR (PG_VERSION_NUM / 10000)

#else

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if !defined(PG_MAJOR) || PG_MAJOR < 12 || PG_MAJOR > 18
#error "PG_MAJOR must be 12 to 18: the magic block of others is not known"
#endif

typedef size_t Size;
typedef uintptr_t Datum;
typedef int32_t int32;
typedef int64_t int64;
typedef uint32_t Oid;
typedef struct MemoryContextData *MemoryContext;
typedef struct ResourceOwnerData *ResourceOwner;

/* utils/palloc.h, utils/memutils.h, nodes/memnodes.h */
#define MCXT_ALLOC_HUGE 0x01
#define MCXT_ALLOC_NO_OOM 0x02

extern MemoryContext TopMemoryContext;
extern MemoryContext CacheMemoryContext;
extern MemoryContext CurrentMemoryContext;

extern MemoryContext AllocSetContextCreateInternal(MemoryContext parent, const char *name, Size min_context_size,
												   Size initial_block_size, Size max_block_size);
#if PG_MAJOR < 15
extern MemoryContext GenerationContextCreate(MemoryContext parent, const char *name, Size block_size);
#else
extern MemoryContext GenerationContextCreate(MemoryContext parent, const char *name, Size min_context_size,
											 Size initial_block_size, Size max_block_size);
#endif
#if PG_MAJOR >= 16
extern void *MemoryContextAllocAligned(MemoryContext context, Size size, Size alignto, int flags);
#endif
extern MemoryContext SlabContextCreate(MemoryContext parent, const char *name, Size block_size, Size chunk_size);
#if PG_MAJOR >= 17
extern MemoryContext BumpContextCreate(MemoryContext parent, const char *name, Size min_context_size,
									   Size initial_block_size, Size max_block_size);
#endif
extern void *palloc(Size size);
extern void *palloc0(Size size);
extern void pfree(void *pointer);
extern void *repalloc(void *pointer, Size size);
extern void *MemoryContextAllocHuge(MemoryContext context, Size size);
extern void *MemoryContextAllocExtended(MemoryContext context, Size size, int flags);
extern void MemoryContextReset(MemoryContext context);
extern void MemoryContextDelete(MemoryContext context);
extern Size GetMemoryChunkSpace(void *pointer);

static inline MemoryContext
MemoryContextSwitchTo(MemoryContext context)
{
	MemoryContext old = CurrentMemoryContext;

	CurrentMemoryContext = context;
	return old;
}

/* access/xact.h, utils/resowner.h */
extern ResourceOwner CurrentResourceOwner;
extern void BeginInternalSubTransaction(const char *name);
extern void RollbackAndReleaseCurrentSubTransaction(void);

/* utils/elog.h */
extern sigjmp_buf *PG_exception_stack;
extern struct ErrorContextCallback *error_context_stack;
extern void FlushErrorState(void);

#define PG_TRY() \
	do { \
		sigjmp_buf *save_exception_stack = PG_exception_stack; \
		struct ErrorContextCallback *save_context_stack = error_context_stack; \
		sigjmp_buf local_sigjmp_buf; \
		if (sigsetjmp(local_sigjmp_buf, 0) == 0) \
		{ \
			PG_exception_stack = &local_sigjmp_buf
#define PG_CATCH() \
		} \
		else \
		{ \
			PG_exception_stack = save_exception_stack; \
			error_context_stack = save_context_stack
#define PG_END_TRY() \
		} \
		PG_exception_stack = save_exception_stack; \
		error_context_stack = save_context_stack; \
	} while (0)

/* fmgr.h, postgres.h */
typedef struct NullableDatum
{
	Datum		value;
	bool		isnull;
} NullableDatum;

typedef struct FunctionCallInfoBaseData
{
	void	   *flinfo;
	void	   *context;
	void	   *resultinfo;
	Oid			fncollation;
	bool		isnull;
	short		nargs;
	NullableDatum args[];
} FunctionCallInfoBaseData, *FunctionCallInfo;

#define PG_FUNCTION_ARGS FunctionCallInfo fcinfo
#define PG_GETARG_INT32(n) ((int32) fcinfo->args[n].value)
#define PG_GETARG_INT64(n) ((int64) fcinfo->args[n].value)
#define PG_RETURN_INT64(x) return (Datum) (x)

typedef struct Pg_finfo_record
{
	int			api_version;
} Pg_finfo_record;

#define PG_FUNCTION_INFO_V1(name) \
	extern Datum name(PG_FUNCTION_ARGS); \
	extern const Pg_finfo_record *pg_finfo_##name(void); \
	const Pg_finfo_record *pg_finfo_##name(void) \
	{ \
		static const Pg_finfo_record record = {1}; \
		return &record; \
	} \
	extern int no_such_variable

/* What the server compares, byte for byte: the defaults of FUNC_MAX_ARGS, INDEX_MAX_KEYS and NAMEDATALEN. */
#define MAGIC_LIMITS 100, 32, 64

#if PG_MAJOR >= 18
typedef struct Pg_magic_struct
{
	int			len;
	struct
	{
		int			version;
		int			funcmaxargs;
		int			indexmaxkeys;
		int			namedatalen;
		int			float8byval;
		char		abi_extra[32];
	}			abi_fields;
	const char *name;
	const char *version;
} Pg_magic_struct;
#define MAGIC_VALUES {PG_MAJOR * 100, MAGIC_LIMITS, 1, "PostgreSQL"}, NULL, NULL
#else
typedef struct Pg_magic_struct
{
	int			len;
	int			version;
	int			funcmaxargs;
	int			indexmaxkeys;
	int			namedatalen;
#if PG_MAJOR == 12
	int			float4byval;
#endif
	int			float8byval;
#if PG_MAJOR >= 15
	char		abi_extra[32];
#endif
} Pg_magic_struct;
#if PG_MAJOR >= 15
#define MAGIC_VALUES PG_MAJOR * 100, MAGIC_LIMITS, 1, "PostgreSQL"
#elif PG_MAJOR >= 13
#define MAGIC_VALUES PG_MAJOR * 100, MAGIC_LIMITS, 1
#else
#define MAGIC_VALUES PG_MAJOR * 100, MAGIC_LIMITS, 1, 1
#endif
#endif

extern const Pg_magic_struct *Pg_magic_func(void);

const Pg_magic_struct *
Pg_magic_func(void)
{
	static const Pg_magic_struct magic = {sizeof(Pg_magic_struct), MAGIC_VALUES};

	return &magic;
}

#endif							/* PLANTED_HEADERS */

#endif							/* PLANTED_SERVER_H */
