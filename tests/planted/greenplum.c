/*
 * A program with the memory contexts of Greenplum 6 (-DGREENPLUM=6), Greenplum 7 (-DGREENPLUM=7) or Cloudberry
 * (-DCLOUDBERRY): layouts, signatures, method tables and the calls between methods are as there, and what a tracer
 * has to tell apart happens. It is no server; its allocator keeps free lists and blocks, and nothing else.
 *
 * It reads numbers from its standard input, one a line, and does so many rounds for each. Each round
 *
 *   leaks one chunk of 100 bytes in CacheMemoryContext, by fetch_policy;
 *   leaves an allocation by an error, from inside of it;
 *   makes a context, fills it, resizes and frees chunks in it, and deletes it;
 *   each tenth: leaks a context, by leak_context, at an address that one of another name had before.
 */
#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(CLOUDBERRY)
#define VERSION "PostgreSQL 14.4 (Apache Cloudberry 1.6.0 build dev) on x86_64-pc-linux-gnu, compiled by gcc"
#define T_AllocSetContext 0x10c
#elif GREENPLUM == 7
#define VERSION "PostgreSQL 12.12 (Greenplum Database 7.1.0 build dev) on x86_64-pc-linux-gnu, compiled by gcc"
#define T_AllocSetContext 0xf1
#elif GREENPLUM == 6
#define VERSION "PostgreSQL 9.4.26 (Greenplum Database 6.24.3 build dev) on x86_64-unknown-linux-gnu, compiled by gcc"
#define T_AllocSetContext 601
#else
#error "which?"
#endif

#define SIX (GREENPLUM == 6)
#define NOINLINE __attribute__((noinline, noclone))
#define NO_TAIL_CALL() __asm__ volatile("" ::: "memory")
#define FREE_LISTS 11
#define LARGEST_CHUNK 8192
#define BLOCK_BYTES (64 * 1024)
#define TOO_LARGE ((Size) 0x40000000)

typedef size_t Size;
typedef int NodeTag;
typedef struct MemoryContextData *MemoryContext;

typedef struct MemoryContextMethods
{
	void	   *(*alloc) (MemoryContext context, Size size);
	void		(*free_p) (MemoryContext context, void *pointer);
	void	   *(*realloc) (MemoryContext context, void *pointer, Size size);
#if SIX
	void		(*init) (MemoryContext context);
	void		(*reset) (MemoryContext context);
	void		(*delete_context) (MemoryContext context);
#else
	void		(*reset) (MemoryContext context);
	void		(*delete_context) (MemoryContext context, MemoryContext parent);
#endif
	Size		(*get_chunk_space) (MemoryContext context, void *pointer);
	bool		(*is_empty) (MemoryContext context);
	void		(*stats) (MemoryContext context);
#if SIX
	void		(*release_accounting) (MemoryContext context);
#else
	void		(*declare_accounting_root) (MemoryContext context);
	Size		(*get_current_usage) (MemoryContext context);
	Size		(*get_peak_usage) (MemoryContext context);
	Size		(*set_peak_usage) (MemoryContext context, Size bytes);
#endif
} MemoryContextMethods;

typedef struct MemoryContextData
{
	NodeTag		type;
#if SIX
	MemoryContextMethods methods;
#else
	bool		is_reset;
	bool		allow_in_crit_section;
#ifndef WITHOUT_MEM_ALLOCATED
	int64_t		mem_allocated;
#endif
	const MemoryContextMethods *methods;
#endif
	MemoryContext parent;
	MemoryContext firstchild;
#if !SIX
	MemoryContext prevchild;
#endif
	MemoryContext nextchild;
	char	   *name;
#if SIX
	bool		is_reset;
	uint64_t	bytes_allocated;
	uint64_t	bytes_freed;
	uint64_t	most_held;
	uint64_t	least_held;
#else
	const char *ident;
	void	   *reset_cbs;
#endif
} MemoryContextData;

#if SIX
_Static_assert(offsetof(MemoryContextData, parent) == 88 && offsetof(MemoryContextData, name) == 112, "6.24.3");
_Static_assert(offsetof(MemoryContextData, bytes_freed) == 136 && sizeof(MemoryContextData) == 160, "6.24.3");
#elif !defined(WITHOUT_MEM_ALLOCATED)
_Static_assert(offsetof(MemoryContextData, name) == 56 && sizeof(MemoryContextData) == 80, "as in 13");
#else
_Static_assert(offsetof(MemoryContextData, name) == 48 && sizeof(MemoryContextData) == 72, "as in 12");
#endif

typedef struct Block
{
	struct AllocSetContext *aset;
	struct Block *prev;
	struct Block *next;
	char	   *freeptr;
#if !SIX
	char	   *endptr;
#endif
} Block;

#if SIX
/* What chunks of one owner share; lies in a chunk of its own, that no user has asked for. */
typedef struct SharedChunkHeader
{
	MemoryContext context;
	int64_t		account;
	int64_t		balance;
	struct SharedChunkHeader *prev;
	struct SharedChunkHeader *next;
} SharedChunkHeader;

typedef struct Chunk
{
	/* A free one has the next one of its list here. */
	SharedChunkHeader *header;
	Size		size;
} Chunk;
#else
typedef struct Chunk
{
	Size		size;
	/* A free one has the next one of its list here. */
	void	   *aset;
} Chunk;
#endif

typedef struct AllocSetContext
{
	MemoryContextData header;
	Block	   *blocks;
	Chunk	   *freelist[FREE_LISTS];
	Size		sizes[4];
	Block	   *keeper;
#if SIX
	SharedChunkHeader *shared;
#else
	int			free_list_index;
	struct AllocSetContext *accounting_parent;
	Size		accounted[3];
#endif
} AllocSetContext;

MemoryContext TopMemoryContext = NULL;
MemoryContext CacheMemoryContext = NULL;
MemoryContext CurrentMemoryContext = NULL;
int			GpIdentity = -1;
const char *const version = VERSION;

static jmp_buf handler;

static Chunk *
chunk_of(void *pointer)
{
	return (Chunk *) pointer - 1;
}

static int
list_of(Size size)
{
	int			list = 0;

	while (((Size) 8 << list) < size)
		list++;
	return list;
}

static Block *
new_block(AllocSetContext *set, Size bytes)
{
#if SIX
	/* gp_malloc keeps the size before what it returns. */
	Size	   *memory = malloc(bytes + 2 * sizeof(Size));
	Block	   *block = (Block *) (memory + 2);

	memory[0] = bytes;
	set->header.bytes_allocated += bytes;
#else
	Block	   *block = malloc(bytes);

	block->endptr = (char *) block + bytes;
#ifndef WITHOUT_MEM_ALLOCATED
	set->header.mem_allocated += bytes;
#endif
#endif
	block->aset = set;
	block->prev = NULL;
	block->next = set->blocks;
	if (set->blocks)
		set->blocks->prev = block;
	set->blocks = block;
	block->freeptr = (char *) (block + 1);
	return block;
}

static char *
end_of(Block *block)
{
#if SIX
	return (char *) block + ((Size *) block)[-2];
#else
	return block->endptr;
#endif
}

static void
release(AllocSetContext *set, Block *block)
{
	Size		bytes = end_of(block) - (char *) block;

	if (block->prev)
		block->prev->next = block->next;
	else
		set->blocks = block->next;
	if (block->next)
		block->next->prev = block->prev;
#if SIX
	set->header.bytes_freed += bytes;
	free((Size *) block - 2);
#else
#ifndef WITHOUT_MEM_ALLOCATED
	set->header.mem_allocated -= bytes;
#else
	(void) bytes;
#endif
	free(block);
#endif
}

/* Room for a chunk, from a free list or a block. */
static Chunk *
take_chunk(AllocSetContext *set, Size size)
{
	int			list = list_of(size);
	Chunk	   *chunk;
	Block	   *block = set->blocks;

	if (size >= TOO_LARGE)
		longjmp(handler, 1);
	if (size > LARGEST_CHUNK)
	{
		block = new_block(set, sizeof(Block) + sizeof(Chunk) + size);
		chunk = (Chunk *) (block + 1);
		chunk->size = size;
		block->freeptr = end_of(block);
		return chunk;
	}
	size = (Size) 8 << list;
	chunk = set->freelist[list];
	if (chunk)
	{
#if SIX
		set->freelist[list] = (Chunk *) chunk->header;
#else
		set->freelist[list] = chunk->aset;
#endif
		return chunk;
	}
	while (block && (Size) (end_of(block) - block->freeptr) < size + sizeof(Chunk))
		block = block->next;
	if (!block)
		block = new_block(set, BLOCK_BYTES);
	chunk = (Chunk *) block->freeptr;
	block->freeptr += size + sizeof(Chunk);
	chunk->size = size;
	return chunk;
}

static void
give_chunk(AllocSetContext *set, Chunk *chunk)
{
	int			list = list_of(chunk->size);

	if (chunk->size > LARGEST_CHUNK)
	{
		release(set, (Block *) chunk - 1);
		return;
	}
#if SIX
	chunk->header = (SharedChunkHeader *) set->freelist[list];
#else
	chunk->aset = set->freelist[list];
#endif
	set->freelist[list] = chunk;
}

#if SIX
static void *AllocSetAllocHeader(MemoryContext context, Size size);

static NOINLINE void *
AllocSetAllocImpl(MemoryContext context, Size size, bool is_header)
{
	AllocSetContext *set = (AllocSetContext *) context;
	Chunk	   *chunk = take_chunk(set, size);

	chunk->header = NULL;
	if (!is_header)
	{
		if (!set->shared)
		{
			set->shared = AllocSetAllocHeader(context, sizeof(SharedChunkHeader));
			memset(set->shared, 0, sizeof(SharedChunkHeader));
			set->shared->context = context;
		}
		set->shared->balance += chunk->size;
		chunk->header = set->shared;
	}
	return chunk + 1;
}

static NOINLINE void *
AllocSetAlloc(MemoryContext context, Size size)
{
	return AllocSetAllocImpl(context, size, false);
}

static NOINLINE void *
AllocSetAllocHeader(MemoryContext context, Size size)
{
	return AllocSetAllocImpl(context, size, true);
}

static NOINLINE void
AllocSetFreeImpl(MemoryContext context, void *pointer, bool is_header)
{
	AllocSetContext *set = (AllocSetContext *) context;
	Chunk	   *chunk = chunk_of(pointer);

	if (!is_header)
	{
		chunk->header->balance -= chunk->size;
		if (chunk->header->balance == 0)
		{
			AllocSetFreeImpl(context, chunk->header, true);
			set->shared = NULL;
		}
	}
	give_chunk(set, chunk);
}

static NOINLINE void
AllocSetFree(MemoryContext context, void *pointer)
{
	AllocSetFreeImpl(context, pointer, false);
}

#define ALLOC_FOR_REALLOC(context, size) AllocSetAllocImpl(context, size, false)
#define FREE_FOR_REALLOC(context, pointer) AllocSetFreeImpl(context, pointer, false)
#else
static NOINLINE void *
AllocSetAlloc(MemoryContext context, Size size)
{
	Chunk	   *chunk = take_chunk((AllocSetContext *) context, size);

	chunk->aset = context;
	return chunk + 1;
}

static NOINLINE void
AllocSetFree(MemoryContext context, void *pointer)
{
	give_chunk((AllocSetContext *) context, chunk_of(pointer));
}

#define ALLOC_FOR_REALLOC(context, size) AllocSetAlloc(context, size)
#define FREE_FOR_REALLOC(context, pointer) AllocSetFree(context, pointer)
#endif

static NOINLINE void *
AllocSetRealloc(MemoryContext context, void *pointer, Size size)
{
	Size		old = chunk_of(pointer)->size;
	void	   *grown;

	if (old >= size)
		return pointer;
	grown = ALLOC_FOR_REALLOC(context, size);
	memcpy(grown, pointer, old);
	FREE_FOR_REALLOC(context, pointer);
	return grown;
}

static NOINLINE void
AllocSetReset(MemoryContext context)
{
	AllocSetContext *set = (AllocSetContext *) context;

	for (Block *block = set->blocks, *next; block; block = next)
	{
		next = block->next;
		if (block != set->keeper)
			release(set, block);
	}
	memset(set->freelist, 0, sizeof(set->freelist));
#if SIX
	set->shared = NULL;
#else
	set->keeper->freeptr = (char *) (set->keeper + 1);
#endif
	context->is_reset = true;
}

void		MemoryContextResetOnly(MemoryContext context);

#if SIX
static NOINLINE void
AllocSetInit(MemoryContext context)
{
	context->is_reset = true;
}

/* Its node is not its own: MemoryContextDelete frees it. */
static NOINLINE void
AllocSetDelete(MemoryContext context)
{
	AllocSetReset(context);
	NO_TAIL_CALL();
}
#else
/* Contexts that were deleted, to be made again at the same address. */
static AllocSetContext *deleted = NULL;

static NOINLINE void
AllocSetDelete(MemoryContext context, MemoryContext parent)
{
	AllocSetContext *set = (AllocSetContext *) context;

	if (!context->is_reset)
		MemoryContextResetOnly(context);
	set->accounting_parent = (AllocSetContext *) parent;
	context->nextchild = (MemoryContext) deleted;
	deleted = set;
}
#endif

static Size
AllocSetGetChunkSpace(MemoryContext context, void *pointer)
{
	(void) context;
	return chunk_of(pointer)->size + sizeof(Chunk);
}

static bool
AllocSetIsEmpty(MemoryContext context)
{
	return context->is_reset;
}

static void
AllocSetStats(MemoryContext context)
{
	printf("%s\n", context->name);
}

#if SIX
static void
AllocSetReleaseAccounting(MemoryContext context)
{
	((AllocSetContext *) context)->sizes[0] = 0;
}

/* In writable data, and copied into every context. */
static MemoryContextMethods AllocSetMethods = {
	AllocSetAlloc, AllocSetFree, AllocSetRealloc, AllocSetInit, AllocSetReset, AllocSetDelete,
	AllocSetGetChunkSpace, AllocSetIsEmpty, AllocSetStats, AllocSetReleaseAccounting
};
#else
static void
AllocSetDeclareAccountingRoot(MemoryContext context)
{
	((AllocSetContext *) context)->accounting_parent = (AllocSetContext *) context;
}

static Size
AllocSetGetCurrentUsage(MemoryContext context)
{
	return ((AllocSetContext *) context)->accounted[1];
}

static Size
AllocSetGetPeakUsage(MemoryContext context)
{
	return ((AllocSetContext *) context)->accounted[2];
}

static Size
AllocSetSetPeakUsage(MemoryContext context, Size bytes)
{
	return ((AllocSetContext *) context)->accounted[2] = bytes;
}

static const MemoryContextMethods AllocSetMethods = {
	AllocSetAlloc, AllocSetFree, AllocSetRealloc, AllocSetReset, AllocSetDelete, AllocSetGetChunkSpace,
	AllocSetIsEmpty, AllocSetStats, AllocSetDeclareAccountingRoot, AllocSetGetCurrentUsage,
	AllocSetGetPeakUsage, AllocSetSetPeakUsage
};
#endif

#if SIX
#define METHOD(context, which) ((context)->methods.which)
#else
#define METHOD(context, which) ((context)->methods->which)
#endif

NOINLINE void *
MemoryContextAlloc(MemoryContext context, Size size)
{
	void	   *chunk;

	context->is_reset = false;
	chunk = METHOD(context, alloc) (context, size);
	if (chunk == NULL)
		abort();
	return chunk;
}

NOINLINE void *
palloc(Size size)
{
	void	   *chunk = MemoryContextAlloc(CurrentMemoryContext, size);

	NO_TAIL_CALL();
	return chunk;
}

static MemoryContext
owner(void *pointer)
{
#if SIX
	return chunk_of(pointer)->header->context;
#else
	return chunk_of(pointer)->aset;
#endif
}

NOINLINE void
pfree(void *pointer)
{
	MemoryContext context = owner(pointer);

	METHOD(context, free_p) (context, pointer);
}

NOINLINE void *
repalloc(void *pointer, Size size)
{
	MemoryContext context = owner(pointer);
	void	   *chunk = METHOD(context, realloc) (context, pointer, size);

	if (chunk == NULL)
		abort();
	return chunk;
}

NOINLINE void
MemoryContextResetOnly(MemoryContext context)
{
	METHOD(context, reset) (context);
}

static void
link_to(MemoryContext node, MemoryContext parent)
{
	node->parent = parent;
	node->nextchild = parent ? parent->firstchild : NULL;
	if (parent)
		parent->firstchild = node;
}

static void
unlink_from(MemoryContext node)
{
	MemoryContext *at = &node->parent->firstchild;

	while (*at != node)
		at = &(*at)->nextchild;
	*at = node->nextchild;
	node->parent = NULL;
}

#if SIX
/* The node is a chunk of TopMemoryContext, with the name behind it. */
NOINLINE MemoryContext
MemoryContextCreate(NodeTag tag, Size size, MemoryContextMethods *methods, MemoryContext parent, const char *name)
{
	Size		bytes = size + strlen(name) + 1;
	MemoryContext node = TopMemoryContext ? MemoryContextAlloc(TopMemoryContext, bytes) : malloc(bytes);

	memset(node, 0, size);
	node->type = tag;
	node->methods = *methods;
	node->name = (char *) node + size;
	strcpy(node->name, name);
	link_to(node, parent);
	METHOD(node, init) (node);
	return node;
}

NOINLINE MemoryContext
AllocSetContextCreate(MemoryContext parent, const char *name, Size least, Size first, Size most)
{
	AllocSetContext *set = (AllocSetContext *)
		MemoryContextCreate(T_AllocSetContext, sizeof(AllocSetContext), &AllocSetMethods, parent, name);

	set->sizes[0] = least;
	set->sizes[1] = first;
	set->sizes[2] = most;
	return (MemoryContext) set;
}

#define NEW_CONTEXT(parent, name) AllocSetContextCreate(parent, name, 0, 8192, 8192)
#else
NOINLINE void
MemoryContextCreate(MemoryContext node, NodeTag tag, const MemoryContextMethods *methods, MemoryContext parent,
					const char *name)
{
	node->type = tag;
	node->is_reset = true;
	node->methods = methods;
	node->name = (char *) name;
	node->ident = NULL;
	link_to(node, parent);
}

NOINLINE MemoryContext
AllocSetContextCreateInternal(MemoryContext parent, const char *name, Size least, Size first, Size most)
{
	AllocSetContext *set = deleted;

	if (set)
		deleted = (AllocSetContext *) set->header.nextchild;
	else
	{
		/* The first block lies right behind the context, and stays as long. */
		set = malloc(sizeof(AllocSetContext) + first);
		memset(set, 0, sizeof(AllocSetContext));
		set->keeper = set->blocks = (Block *) (set + 1);
		set->keeper->aset = set;
		set->keeper->prev = set->keeper->next = NULL;
		set->keeper->freeptr = (char *) (set->keeper + 1);
		set->keeper->endptr = (char *) (set + 1) + first;
#ifndef WITHOUT_MEM_ALLOCATED
		set->header.mem_allocated = sizeof(AllocSetContext) + first;
#endif
	}
	set->sizes[0] = least;
	set->sizes[1] = first;
	set->sizes[2] = most;
	MemoryContextCreate((MemoryContext) set, T_AllocSetContext, &AllocSetMethods, parent, name);
	return (MemoryContext) set;
}

#define NEW_CONTEXT(parent, name) AllocSetContextCreateInternal(parent, name, 0, 8192, 8192)
#endif

NOINLINE void
MemoryContextDeleteImpl(MemoryContext context, const char *file, const char *function, int line)
{
	MemoryContext parent = context->parent;

	(void) file, (void) function, (void) line;
	unlink_from(context);
#if SIX
	(void) parent;
	METHOD(context, delete_context) (context);
	pfree(context);
#else
	METHOD(context, delete_context) (context, parent);
#endif
	NO_TAIL_CALL();
}

#define MemoryContextDelete(context) MemoryContextDeleteImpl(context, __FILE__, __func__, __LINE__)

/* ---- what is done ---- */

NOINLINE void
fetch_policy(void)
{
	MemoryContext old = CurrentMemoryContext;
	void	   *policy,
			   *scratch;

	CurrentMemoryContext = CacheMemoryContext;
	policy = palloc(100);
	scratch = palloc(700);
	memset(policy, 1, 100);
	pfree(scratch);
	CurrentMemoryContext = old;
}

NOINLINE void
run_out_of_memory(void)
{
	if (setjmp(handler) == 0)
		palloc(TOO_LARGE);
	NO_TAIL_CALL();
}

NOINLINE void
churn_context(const char *name)
{
	MemoryContext old = CurrentMemoryContext;
	MemoryContext own = NEW_CONTEXT(TopMemoryContext, name);

	CurrentMemoryContext = own;
	for (int i = 0; i < 10; i++)
	{
		void	   *chunk = repalloc(palloc(40), 400);

		if (i % 2)
			pfree(chunk);
	}
	CurrentMemoryContext = old;
	MemoryContextDelete(own);
}

NOINLINE void
leak_context(void)
{
	MemoryContext old = CurrentMemoryContext;

	/* Of one length, so that the next one gets the same place. */
	churn_context("early name");
	CurrentMemoryContext = NEW_CONTEXT(TopMemoryContext, "later name");
	memset(palloc(64), 2, 64);
	CurrentMemoryContext = old;
}

NOINLINE void
one_round(int number)
{
	fetch_policy();
	run_out_of_memory();
	churn_context("churned");
	if (number % 10 == 0)
		leak_context();
	NO_TAIL_CALL();
}

int
main(void)
{
	char		line[32];

	TopMemoryContext = NEW_CONTEXT(NULL, "TopMemoryContext");
	CacheMemoryContext = NEW_CONTEXT(TopMemoryContext, "CacheMemoryContext");
	CurrentMemoryContext = NEW_CONTEXT(TopMemoryContext, "MessageContext");
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("%s\n", version);
	while (fgets(line, sizeof(line), stdin))
	{
		int			rounds = atoi(line);

		for (int i = 0; i < rounds; i++)
			one_round(i);
		printf("%d\n", rounds);
	}
	return 0;
}
