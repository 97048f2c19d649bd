/*
 * Exact patterns of allocation, to be run by a server and counted by a tracer.
 *
 * Everything lives in the context "planted leak", a child of TopMemoryContext, or in children of it. Chunks that
 * are kept are remembered in memory of malloc, which no allocator of the server sees. Every SQL function returns
 * bytes as the server itself counts them, chunk headers and rounding included (GetMemoryChunkSpace), unless it
 * says otherwise.
 *
 * Functions that a test looks for in stacks are never inlined, cloned or left by a tail call, and have symbols.
 */
#include "server.h"

#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define FRAME __attribute__((noinline, noclone, used, visibility("default")))

/* Keeps the caller's frame: without it the call before it could become a jump. */
#define NO_TAIL_CALL() __asm__ volatile("" ::: "memory")

/* MaxAllocSize is 1 GB - 1. */
#define TOO_LARGE ((Size) 0x40000000)

/* No allocator has that much address space: malloc returns NULL. */
#define UNOBTAINABLE ((Size) 1 << 60)

static MemoryContext planted_context = NULL;

static struct
{
	void	  **chunks;
	size_t		count;
	size_t		room;
}			kept;

static MemoryContext
new_context(MemoryContext parent, const char *name)
{
	return AllocSetContextCreateInternal(parent, name, 0, 8 * 1024, 8 * 1024 * 1024);
}

static MemoryContext
context(void)
{
	if (planted_context == NULL)
		planted_context = new_context(TopMemoryContext, "planted leak");
	return planted_context;
}

static int64
keep(void *chunk)
{
	if (kept.count == kept.room)
	{
		kept.room = kept.room ? kept.room * 2 : 1024;
		kept.chunks = realloc(kept.chunks, kept.room * sizeof(void *));
		if (kept.chunks == NULL)
			abort();
	}
	kept.chunks[kept.count++] = chunk;
	return (int64) GetMemoryChunkSpace(chunk);
}

/* The newest chunks that are kept, at most so many. */
static size_t
newest(int32 count)
{
	return count < 0 ? 0 : (size_t) count > kept.count ? kept.count : (size_t) count;
}

/* ---- functions to find in stacks ---- */

FRAME int64
planted_leak_palloc(int32 count, Size size)
{
	MemoryContext old = MemoryContextSwitchTo(context());
	int64		held = 0;

	for (int32 i = 0; i < count; i++)
		held += keep(palloc(size));
	MemoryContextSwitchTo(old);
	return held;
}

FRAME int64
planted_leak_palloc0(int32 count, Size size)
{
	MemoryContext old = MemoryContextSwitchTo(context());
	int64		held = 0;

	for (int32 i = 0; i < count; i++)
		held += keep(palloc0(size));
	MemoryContextSwitchTo(old);
	return held;
}

FRAME int64
planted_leak_huge(int32 count, Size size)
{
	int64		held = 0;

	for (int32 i = 0; i < count; i++)
		held += keep(MemoryContextAllocHuge(context(), size));
	return held;
}

FRAME int64
planted_leak_repalloc(int32 count, Size size)
{
	int64		held = 0;
	size_t		first = kept.count - newest(count);

	for (size_t i = first; i < kept.count; i++)
	{
		kept.chunks[i] = repalloc(kept.chunks[i], size);
		held += (int64) GetMemoryChunkSpace(kept.chunks[i]);
	}
	return held;
}

FRAME int64
planted_free(int32 count)
{
	int64		freed = 0;

	for (size_t left = newest(count); left > 0; left--)
	{
		void	   *chunk = kept.chunks[--kept.count];

		freed += (int64) GetMemoryChunkSpace(chunk);
		pfree(chunk);
	}
	return freed;
}

FRAME int64
planted_leak_deep(int32 depth, int32 count, Size size)
{
	int64		held = depth > 0 ? planted_leak_deep(depth - 1, count, size) : planted_leak_palloc(count, size);

	NO_TAIL_CALL();
	return held;
}

/* Allocates in a context of its own, which then goes with all that is in it. */
FRAME int64
planted_dropped_context(int32 count, Size size)
{
	MemoryContext own = new_context(context(), "planted dropped");
	MemoryContext old = MemoryContextSwitchTo(own);
	int64		held = 0;

	for (int32 i = 0; i < count; i++)
		held += (int64) GetMemoryChunkSpace(palloc(size));
	MemoryContextSwitchTo(old);
	MemoryContextDelete(own);
	return held;
}

/* The same, but the context is kept: the whole of it leaks. Its address is often one of a dropped context. */
FRAME int64
planted_leak_context(int32 count, Size size)
{
	MemoryContext own = new_context(context(), "planted kept");
	MemoryContext old = MemoryContextSwitchTo(own);
	int64		held = 0;

	for (int32 i = 0; i < count; i++)
		held += (int64) GetMemoryChunkSpace(palloc(size));
	MemoryContextSwitchTo(old);
	return held;
}

/* Contexts in one another; a reset or delete of "planted leak" takes them all. */
FRAME int64
planted_leak_nested(int32 depth, int32 count, Size size)
{
	MemoryContext innermost = context();
	int64		held = 0;

	for (int32 level = 0; level < depth; level++)
	{
		MemoryContext old;

		innermost = new_context(innermost, "planted nested");
		old = MemoryContextSwitchTo(innermost);
		for (int32 i = 0; i < count; i++)
			held += (int64) GetMemoryChunkSpace(palloc(size));
		MemoryContextSwitchTo(old);
	}
	return held;
}

/* In flight for an instant: each chunk is freed before the next is made. */
FRAME int64
planted_transient(int32 count, Size size)
{
	MemoryContext old = MemoryContextSwitchTo(context());
	int64		held = 0;

	for (int32 i = 0; i < count; i++)
	{
		void	   *chunk = palloc(size);

		held += (int64) GetMemoryChunkSpace(chunk);
		pfree(chunk);
	}
	MemoryContextSwitchTo(old);
	return held;
}

/* Keeps each hundredth of some chunks, the first of them, and frees the others when all are there. */
FRAME int64
planted_leak_sparse(int32 count, Size size)
{
	MemoryContext old = MemoryContextSwitchTo(context());
	void	  **others = malloc(sizeof(void *) * (count > 0 ? count : 1));
	int64		held = 0;

	if (others == NULL)
		abort();
	for (int32 i = 0; i < count; i++)
	{
		void	   *chunk = palloc(size);

		others[i] = i % 100 == 0 ? NULL : chunk;
		if (others[i] == NULL)
			held += keep(chunk);
	}
	for (int32 i = 0; i < count; i++)
		if (others[i] != NULL)
			pfree(others[i]);
	free(others);
	MemoryContextSwitchTo(old);
	return held;
}

/* Raises the error that `kind` names; see planted_error in SQL. */
FRAME void
planted_fail(int32 kind)
{
	MemoryContext old = MemoryContextSwitchTo(context());

	if (kind == 0)
		palloc(TOO_LARGE);
	else if (kind == 1)
	{
		if (kept.count == 0)
			keep(palloc(64));
		kept.chunks[kept.count - 1] = repalloc(kept.chunks[kept.count - 1], TOO_LARGE);
	}
	else
		MemoryContextAllocHuge(context(), UNOBTAINABLE);
	MemoryContextSwitchTo(old);
}

/* ---- memory outside of contexts; nothing here needs any for itself ---- */

#define MOST_OUTSIDE 4000
static void *outside[MOST_OUTSIDE];

/* In each way that the C library offers; size is a multiple of 64. */
FRAME void *
planted_malloc_one(int32 way, Size size)
{
	void	   *chunk = NULL;

	if (way == 0)
		chunk = malloc(size);
	else if (way == 1)
		chunk = calloc(size / 16, 16);
	else if (way == 2)
		chunk = realloc(NULL, size);
	else if (way == 3)
		chunk = aligned_alloc(64, size);
	else if (posix_memalign(&chunk, 64, size) != 0)
		abort();
	if (chunk == NULL)
		abort();
	NO_TAIL_CALL();
	return chunk;
}

FRAME void *
planted_malloc_grown(void *chunk, Size size)
{
	chunk = realloc(chunk, size);
	if (chunk == NULL)
		abort();
	NO_TAIL_CALL();
	return chunk;
}

/* Of each ten chunks two are freed, one by realloc, and two doubled; bytes of those that stay, headers included. */
FRAME int64
planted_leak_malloc(int32 count, Size size)
{
	int64		held = 0;

	count = count > MOST_OUTSIDE ? MOST_OUTSIDE : count;
	for (int32 i = 0; i < count; i++)
		outside[i] = planted_malloc_one(i % 5, size);
	for (int32 i = 0; i < count; i++)
	{
		if (i % 10 == 0)
			free(outside[i]);
		else if (i % 10 == 1)
			outside[i] = realloc(outside[i], 0);
		else
		{
			if (i % 10 < 4)
				outside[i] = planted_malloc_grown(outside[i], size * 2);
			held += (int64) malloc_usable_size(outside[i]) + 8;
		}
	}
	return held;
}

static void *
in_thread(void *argument)
{
	int32		count = ((int32 *) argument)[0];
	int32		size = ((int32 *) argument)[1];

	for (int32 i = 0; i < count; i++)
	{
		void	   *kept_one = planted_malloc_one(0, (Size) size);

		free(planted_malloc_one(0, (Size) size));
		__asm__ volatile("" : : "r"(kept_one) : "memory");
	}
	return NULL;
}

/* Four threads at once, each with so many chunks that stay and as many that go; chunks that stay. */
FRAME int64
planted_leak_threads(int32 count, Size size)
{
	pthread_t	threads[4];
	int32		argument[2] = {count, (int32) size};

	for (int32 i = 0; i < 4; i++)
		if (pthread_create(&threads[i], NULL, in_thread, argument) != 0)
			abort();
	for (int32 i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	return 4 * (int64) count;
}

/*
 * Mappings: of each three one stays, one goes, and one loses its first page. Shared ones stay, and are nobody's.
 * Bytes of those that stay.
 */
FRAME int64
planted_leak_mmap(int32 count, Size size)
{
	const Size	page = 4096;
	const Size	bytes = (size + page - 1) / page * page;
	int64		held = 0;

	for (int32 i = 0; i < count; i++)
	{
		char	   *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (at == MAP_FAILED)
			abort();
		if (mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
			abort();
		if (i % 3 == 0)
			munmap(at, size);
		else if (i % 3 == 1)
			munmap(at, page);
		held += i % 3 == 0 ? 0 : (int64) (i % 3 == 1 ? bytes - page : bytes);
	}
	return held;
}

/* ---- one function by many paths, and many small stacks below one function ---- */

FRAME int64
planted_hub(int32 count, Size size)
{
	int64		held = planted_leak_palloc(count, size);

	NO_TAIL_CALL();
	return held;
}

#define TEN(X, tens) X(tens##0) X(tens##1) X(tens##2) X(tens##3) X(tens##4) X(tens##5) X(tens##6) X(tens##7) \
	X(tens##8) X(tens##9)
#define FORTY(X) TEN(X, 0) TEN(X, 1) TEN(X, 2) TEN(X, 3)

#define DEFINE_PATH(n) \
	FRAME int64 planted_path_##n(int32 count, Size size) \
	{ \
		int64 held = planted_hub(count, size); \
		NO_TAIL_CALL(); \
		return held; \
	}
#define DEFINE_LEAF(n) \
	FRAME int64 planted_leaf_##n(int32 count, Size size) \
	{ \
		int64 held = planted_leak_palloc(count, size); \
		NO_TAIL_CALL(); \
		return held; \
	}
#define CALL_PATH(n) held += planted_path_##n(count, size);
#define CALL_LEAF(n) held += planted_leaf_##n(count, size);

FORTY(DEFINE_PATH)
FORTY(DEFINE_LEAF)

/* As many stacks as numbers: each bit of `number`, below `depth`, calls one function or the other. */
FRAME int64 planted_left(uint32_t number, int32 depth, Size size);
FRAME int64 planted_right(uint32_t number, int32 depth, Size size);

static inline int64
branch(uint32_t number, int32 depth, Size size)
{
	if (depth <= 0)
		return planted_leak_palloc(1, size);
	return number & 1 ? planted_right(number >> 1, depth - 1, size) : planted_left(number >> 1, depth - 1, size);
}

FRAME int64
planted_left(uint32_t number, int32 depth, Size size)
{
	int64		held = branch(number, depth, size);

	NO_TAIL_CALL();
	return held;
}

FRAME int64
planted_right(uint32_t number, int32 depth, Size size)
{
	int64		held = branch(number, depth, size);

	NO_TAIL_CALL();
	return held;
}

/*
 * A function that fetches what its caller throws away, in the cache's context, as Greenplum's
 * GpPolicyFetch did below RelationBuildDesc (greenplum-db/gpdb issue 11244).
 */
FRAME int64
planted_policy_fetch(int32 count, Size size)
{
	MemoryContext old = MemoryContextSwitchTo(CacheMemoryContext);
	int64		held = 0;

	for (int32 i = 0; i < count; i++)
	{
		held += (int64) GetMemoryChunkSpace(palloc(size));
		held += (int64) GetMemoryChunkSpace(palloc0(size / 2 + 1));
	}
	MemoryContextSwitchTo(old);
	return held;
}

#define DEFINE_FETCH(n) \
	FRAME int64 planted_fetch_##n(int32 count, Size size) \
	{ \
		int64 held = planted_policy_fetch(count, size); \
		NO_TAIL_CALL(); \
		return held; \
	}
#define NAME_FETCH(n) planted_fetch_##n,

FORTY(DEFINE_FETCH)

/* Chunks of which the first quarter, and each third of the others, are freed; bytes of those that stay. */
static int64
fill(MemoryContext into, int32 count, Size size)
{
	MemoryContext old = MemoryContextSwitchTo(into);
	void	  **chunks = malloc(count * sizeof(void *));
	int64		held = 0;

	if (chunks == NULL)
		abort();
	for (int32 i = 0; i < count; i++)
		chunks[i] = palloc(size);
	for (int32 i = 0; i < count; i++)
	{
		if (i < count / 4 || i % 3 == 0)
			pfree(chunks[i]);
		else
			held += (int64) GetMemoryChunkSpace(chunks[i]);
	}
	free(chunks);
	MemoryContextSwitchTo(old);
	return held;
}

/* Contexts of the other kinds that the server has. */
FRAME int64
planted_other_kinds(int32 count, Size size)
{
	int64		held;
	MemoryContext other;

#if PG_MAJOR < 15
	other = GenerationContextCreate(context(), "planted generation", 8 * 1024);
#else
	other = GenerationContextCreate(context(), "planted generation", 0, 8 * 1024, 64 * 1024);
#endif
	fill(other, count, size);
	held = fill(SlabContextCreate(context(), "planted slab", 8 * 1024, size), count, size);
#if PG_MAJOR >= 17
	other = MemoryContextSwitchTo(BumpContextCreate(context(), "planted bump", 0, 8 * 1024, 64 * 1024));
	for (int32 i = 0; i < count; i++)
		(void) palloc(size);
	MemoryContextSwitchTo(other);
#endif
	return held;
}

#define GENERATION 0
#define SLAB 1
#define BUMP 2
#define ALIGNED 3
#define ALIGNMENT 256

static MemoryContext
new_of_kind(int32 kind, Size size)
{
	if (kind == GENERATION)
#if PG_MAJOR < 15
		return GenerationContextCreate(context(), "planted generation", 8 * 1024);
#else
		return GenerationContextCreate(context(), "planted generation", 0, 8 * 1024, 64 * 1024);
#endif
	if (kind == SLAB)
		return SlabContextCreate(context(), "planted slab", 8 * 1024, size);
#if PG_MAJOR >= 17
	if (kind == BUMP)
		return BumpContextCreate(context(), "planted bump", 0, 8 * 1024, 64 * 1024);
#endif
	return new_context(context(), "planted aligned");
}

FRAME void *
planted_new(Size size, int32 kind)
{
	void	   *chunk;

#if PG_MAJOR >= 16
	if (kind == ALIGNED)
		chunk = MemoryContextAllocAligned(CurrentMemoryContext, size, ALIGNMENT, 0);
	else
#endif
		chunk = palloc(size);
	NO_TAIL_CALL();
	return chunk;
}

FRAME void *
planted_grown(void *chunk, Size size)
{
	chunk = repalloc(chunk, size);
	NO_TAIL_CALL();
	return chunk;
}

/*
 * A context of one kind with so many chunks. A third of them is freed and another third is doubled, where that can
 * be done.
 */
FRAME int64
planted_leak_kind(int32 count, Size size, int32 kind)
{
	MemoryContext old = MemoryContextSwitchTo(new_of_kind(kind, size));
	void	  **chunks = malloc(count * sizeof(void *));
	int64		held = 0;

	if (chunks == NULL)
		abort();
	for (int32 i = 0; i < count; i++)
		chunks[i] = planted_new(size, kind);
	for (int32 i = 0; i < count; i++)
	{
		if (kind == BUMP)
		{
			/* It has no chunk headers. */
			held += (int64) ((size + 7) / 8 * 8);
			continue;
		}
		if (i % 3 == 0)
		{
			pfree(chunks[i]);
			continue;
		}
		if (i % 3 == 1 && kind != SLAB)
			chunks[i] = planted_grown(chunks[i], size * 2);
		held += (int64) GetMemoryChunkSpace(chunks[i]);
	}
	free(chunks);
	MemoryContextSwitchTo(old);
	return held;
}

/* Contexts of one kind, filled, reset, filled and deleted. */
FRAME int64
planted_dropped_kind(int32 count, Size size, int32 kind)
{
	MemoryContext own = new_of_kind(kind, size);
	MemoryContext old = MemoryContextSwitchTo(own);

	for (int32 round = 0; round < 2; round++)
	{
		if (round == 1)
			MemoryContextReset(own);
		for (int32 i = 0; i < count; i++)
			(void) planted_new(size, kind);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(own);
	return 2 * (int64) count;
}

FRAME int64
planted_root(int32 count, Size size)
{
	int64		held = 0;

	FORTY(CALL_LEAF)
	return held;
}

/* ---- SQL functions ---- */

#define COUNT PG_GETARG_INT32(0)
#define SIZE ((Size) PG_GETARG_INT64(1))

PG_FUNCTION_INFO_V1(planted_palloc);
Datum
planted_palloc(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(planted_leak_palloc(COUNT, SIZE));
}

PG_FUNCTION_INFO_V1(planted_palloc0);
Datum
planted_palloc0(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(planted_leak_palloc0(COUNT, SIZE));
}

PG_FUNCTION_INFO_V1(planted_huge);
Datum
planted_huge(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(planted_leak_huge(COUNT, SIZE));
}

PG_FUNCTION_INFO_V1(planted_repalloc);
Datum
planted_repalloc(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(planted_leak_repalloc(COUNT, SIZE));
}

PG_FUNCTION_INFO_V1(planted_pfree);
Datum
planted_pfree(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(planted_free(COUNT));
}

PG_FUNCTION_INFO_V1(planted_deep);
Datum
planted_deep(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(planted_leak_deep(PG_GETARG_INT32(2), COUNT, SIZE));
}

PG_FUNCTION_INFO_V1(planted_nested);
Datum
planted_nested(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(planted_leak_nested(PG_GETARG_INT32(2), COUNT, SIZE));
}

/* Rounds of a context that comes and goes. */
PG_FUNCTION_INFO_V1(planted_churn);
Datum
planted_churn(PG_FUNCTION_ARGS)
{
	int64		held = 0;

	for (int32 round = PG_GETARG_INT32(2); round > 0; round--)
		held += planted_dropped_context(COUNT, SIZE);
	PG_RETURN_INT64(held);
}

PG_FUNCTION_INFO_V1(planted_keep_context);
Datum
planted_keep_context(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(planted_leak_context(COUNT, SIZE));
}

PG_FUNCTION_INFO_V1(planted_kinds);
Datum
planted_kinds(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(planted_other_kinds(COUNT, SIZE));
}

PG_FUNCTION_INFO_V1(planted_kind);
Datum
planted_kind(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(planted_leak_kind(COUNT, SIZE, PG_GETARG_INT32(2)));
}

PG_FUNCTION_INFO_V1(planted_no_kind);
Datum
planted_no_kind(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(planted_dropped_kind(COUNT, SIZE, PG_GETARG_INT32(2)));
}

PG_FUNCTION_INFO_V1(planted_malloc);
Datum
planted_malloc(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(planted_leak_malloc(COUNT, SIZE));
}

PG_FUNCTION_INFO_V1(planted_threads);
Datum
planted_threads(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(planted_leak_threads(COUNT, SIZE));
}

PG_FUNCTION_INFO_V1(planted_mmap);
Datum
planted_mmap(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(planted_leak_mmap(COUNT, SIZE));
}

PG_FUNCTION_INFO_V1(planted_in_flight);
Datum
planted_in_flight(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(planted_transient(COUNT, SIZE));
}

PG_FUNCTION_INFO_V1(planted_sparse);
Datum
planted_sparse(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(planted_leak_sparse(COUNT, SIZE));
}

PG_FUNCTION_INFO_V1(planted_many_paths);
Datum
planted_many_paths(PG_FUNCTION_ARGS)
{
	int32		count = COUNT;
	Size		size = SIZE;
	int64		held = 0;

	FORTY(CALL_PATH)
	PG_RETURN_INT64(held);
}

/* A chunk by each of `count` different stacks, below as many frames as the third argument says. */
PG_FUNCTION_INFO_V1(planted_branches);
Datum
planted_branches(PG_FUNCTION_ARGS)
{
	int64		held = 0;

	for (int32 i = 0; i < COUNT; i++)
		held += branch((uint32_t) i, PG_GETARG_INT32(2), SIZE);
	PG_RETURN_INT64(held);
}

/* Never freed, and not counted among the chunks that are kept: by one of forty paths. */
PG_FUNCTION_INFO_V1(planted_fetch);
Datum
planted_fetch(PG_FUNCTION_ARGS)
{
	static int64 (*const paths[]) (int32, Size) = {FORTY(NAME_FETCH)};
	int32		path = PG_GETARG_INT32(2);

	PG_RETURN_INT64(paths[(uint32_t) path % 40] (COUNT, SIZE));
}

PG_FUNCTION_INFO_V1(planted_many_leaves);
Datum
planted_many_leaves(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(planted_root(COUNT, SIZE));
}

/* Returns how many of so many requests came back NULL: all of them. */
PG_FUNCTION_INFO_V1(planted_null);
Datum
planted_null(PG_FUNCTION_ARGS)
{
	int64		nulls = 0;

	for (int32 i = 0; i < COUNT; i++)
		nulls += MemoryContextAllocExtended(context(), UNOBTAINABLE, MCXT_ALLOC_HUGE | MCXT_ALLOC_NO_OOM) == NULL;
	PG_RETURN_INT64(nulls);
}

/* Returns how many kept chunks the reset ended; nested and kept contexts go too and are not counted. */
PG_FUNCTION_INFO_V1(planted_reset);
Datum
planted_reset(PG_FUNCTION_ARGS)
{
	size_t		ended = kept.count;

	MemoryContextReset(context());
	kept.count = 0;
	PG_RETURN_INT64(ended);
}

/* Does not return: the process becomes another program, which sleeps for so many seconds. */
PG_FUNCTION_INFO_V1(planted_exec);
Datum
planted_exec(PG_FUNCTION_ARGS)
{
	execl("/bin/sleep", "sleep", COUNT == 1 ? "1" : "2", (char *) NULL);
	PG_RETURN_INT64(-1);
}

PG_FUNCTION_INFO_V1(planted_delete);
Datum
planted_delete(PG_FUNCTION_ARGS)
{
	size_t		ended = kept.count;

	if (planted_context != NULL)
		MemoryContextDelete(planted_context);
	planted_context = NULL;
	kept.count = 0;
	PG_RETURN_INT64(ended);
}

/* Bytes of all kept chunks, as they are now. */
PG_FUNCTION_INFO_V1(planted_live);
Datum
planted_live(PG_FUNCTION_ARGS)
{
	int64		held = 0;

	for (size_t i = 0; i < kept.count; i++)
		held += (int64) GetMemoryChunkSpace(kept.chunks[i]);
	PG_RETURN_INT64(held);
}

PG_FUNCTION_INFO_V1(planted_chunks);
Datum
planted_chunks(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(kept.count);
}

/* Keeps chunks, then leaves by an error that ends the statement. */
PG_FUNCTION_INFO_V1(planted_error);
Datum
planted_error(PG_FUNCTION_ARGS)
{
	planted_leak_palloc(COUNT, SIZE);
	planted_fail(PG_GETARG_INT32(2));
	PG_RETURN_INT64(-1);
}

/* Keeps chunks, then swallows an error. */
PG_FUNCTION_INFO_V1(planted_caught);
Datum
planted_caught(PG_FUNCTION_ARGS)
{
	MemoryContext old = CurrentMemoryContext;
	volatile int64 held = planted_leak_palloc(COUNT, SIZE);

	PG_TRY();
	{
		planted_fail(PG_GETARG_INT32(2));
		held = -1;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(old);
		FlushErrorState();
	}
	PG_END_TRY();
	PG_RETURN_INT64(held);
}

/* Keeps chunks inside a subtransaction, which an error ends. */
PG_FUNCTION_INFO_V1(planted_subtransaction);
Datum
planted_subtransaction(PG_FUNCTION_ARGS)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile int64 held = -1;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		int64		kept_bytes = planted_leak_palloc(COUNT, SIZE);

		held = kept_bytes;
		planted_fail(PG_GETARG_INT32(2));
		held = -1;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(old);
		FlushErrorState();
	}
	PG_END_TRY();
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	PG_RETURN_INT64(held);
}
