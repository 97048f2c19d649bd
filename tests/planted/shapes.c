/*
 * Stacks of odd shapes. Reads names of shapes, one a line; for each it calls target() from within such
 * a stack and says "done". target() allocates as PostgreSQL 12 to 15 do: what the traced programs
 * read is there.
 *
 * Built with and without frame pointers, never with sibling calls, and bound lazily.
 */
#define _GNU_SOURCE
#include <alloca.h>
#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

/* A function that is called, by its own name, with the arguments that it has. */
#define KEPT __attribute__((noipa)) void

/* A memory context whose name is its first word, and the one chunk of it: size, context, bytes. */
static const char *context[] = {"shapes"};
static struct {
	uintptr_t size;
	const void *context;
	char bytes[64];
} chunk = {64, context, ""};

/* Looks used to the compiler. */
#define USED(pointer) __asm__ volatile("" : : "r"(pointer) : "memory")

__attribute__((noipa)) void *target(const void *in, size_t size)
{
	USED(in);
	chunk.size = (size + 7) & ~(size_t)7;
	return chunk.bytes;
}

static inline void call_target(void)
{
	void *bytes = target(context, 40);
	USED(bytes);
}

KEPT plain(void)
{
	call_target();
}

/* rsp is aligned, so that only rbp knows where the frame began. */
KEPT aligned(void)
{
	_Alignas(64) char local[256];
	USED(local);
	call_target();
	USED(local);
}

/* With alloca and arguments on the stack as well, not even rbp does: the CFA is in memory. */
KEPT aligned_further(size_t size, int b, int c, int d, int e, int f, int on_stack, int too)
{
	_Alignas(64) char local[128];
	char *more = alloca(size + on_stack + too + b + c + d + e + f);
	USED(local);
	USED(more);
	call_target();
	USED(more);
}

KEPT aligned_alloca(void)
{
	aligned_further(100, 1, 2, 3, 4, 5, 6, 7);
	USED(context);
}

__attribute__((noipa)) int compare(const void *one, const void *other)
{
	call_target();
	return *(const int *)one - *(const int *)other;
}

KEPT sorted(void)
{
	int numbers[] = {2, 1};
	qsort(numbers, 2, sizeof *numbers, compare);
	USED(numbers);
}

KEPT on_signal(int number)
{
	(void)number;
	call_target();
}

KEPT signalled(void)
{
	signal(SIGUSR1, on_signal);
	raise(SIGUSR1);
}

/* Interrupted at its very first instruction: the byte before is of the function before. */
__asm__(".text\n"
        ".type before, @function\n"
        "before:\n"
        "  .cfi_startproc\n"
        "  sub $104, %rsp\n"
        "  .cfi_def_cfa_offset 112\n"
        "  ud2\n"
        "  .cfi_endproc\n"
        ".size before, . - before\n"
        ".type trap, @function\n"
        "trap:\n"
        "  .cfi_startproc\n"
        "  ud2\n"
        "  ret\n"
        "  .cfi_endproc\n"
        ".size trap, . - trap\n");
void trap(void);

KEPT on_trap(int number, siginfo_t *info, void *interrupted)
{
	(void)number;
	(void)info;
	call_target();
	((ucontext_t *)interrupted)->uc_mcontext.gregs[REG_RIP] += 2;
}

KEPT trapped(void)
{
	struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
	sigaction(SIGILL, &action, NULL);
	trap();
	USED(context);
}

KEPT deep(int depth)
{
	if (depth > 0)
		deep(depth - 1);
	else
		call_target();
	USED(context);
}

/*
 * As deep as is kept: of 127 frames one is the probe's, then come target, deep(119) to deep(0), this
 * one, main, two in libc, and _start.
 */
KEPT deepest_whole(void)
{
	deep(119);
	USED(context);
}

KEPT too_deep(void)
{
	deep(200);
	USED(context);
}

KEPT large_frame(void)
{
	char local[200 << 10];
	USED(local);
	call_target();
	USED(local);
}

/* The first call goes through the stub of the PLT into the dynamic linker. */
KEPT bound_lazily(void)
{
	pid_t parent = getppid();
	USED(&parent);
	call_target();
}

/* A call that never returns is its function's last instruction: the address after it is not in it. */
static jmp_buf out;

__attribute__((noipa, noreturn)) void never_returns(void)
{
	call_target();
	longjmp(out, 1);
}

__attribute__((noipa, noreturn)) void ends_with_a_call(int unused)
{
	USED(&unused);
	never_returns();
}

KEPT left_by_jump(void)
{
	if (setjmp(out) == 0)
		ends_with_a_call(1);
}

/* A stack of shared memory, whose older pages are taken out of the page table before the call. */
#define PAGE 4096
#define STACK_BYTES (64 * PAGE)
static char *stack;
static ucontext_t on_stack, elsewhere;

KEPT newest_frame(void)
{
	char *here = (char *)((uintptr_t)__builtin_frame_address(0) & ~(uintptr_t)(PAGE - 1));
	char *from = here + 2 * PAGE;
	if (madvise(from, stack + STACK_BYTES - from, MADV_DONTNEED) != 0)
		abort();
	call_target();
	USED(stack);
}

KEPT older_frame(int depth)
{
	char local[3 * PAGE];
	USED(local);
	if (depth > 0)
		older_frame(depth - 1);
	else
		newest_frame();
	USED(local);
}

KEPT oldest_frame(void)
{
	older_frame(2);
	USED(stack);
}

/*
 * The bottom of that stack. That of glibc, __start_context, does not say that it is one: its FDE has
 * the rule of an ordinary function. So each unwinder, gdb too, finds a wrong caller there.
 */
__asm__(".text\n"
        ".type bottom, @function\n"
        "bottom:\n"
        "  .cfi_startproc\n"
        "  .cfi_undefined rip\n"
        "  sub $8, %rsp\n"
        "  .cfi_adjust_cfa_offset 8\n"
        "  call oldest_frame\n"
        "  add $8, %rsp\n"
        "  .cfi_adjust_cfa_offset -8\n"
        "  ret\n"
        "  .cfi_endproc\n"
        ".size bottom, . - bottom\n");
void bottom(void);

KEPT absent_pages(void)
{
	int memory = memfd_create("stack", 0);
	if (memory < 0 || ftruncate(memory, STACK_BYTES) != 0)
		abort();
	stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	if (stack == MAP_FAILED || getcontext(&on_stack) != 0)
		abort();
	on_stack.uc_stack.ss_sp = stack;
	on_stack.uc_stack.ss_size = STACK_BYTES;
	on_stack.uc_link = &elsewhere;
	makecontext(&on_stack, bottom, 0);
	if (swapcontext(&elsewhere, &on_stack) != 0)
		abort();
	munmap(stack, STACK_BYTES);
	close(memory);
}

/* Somebody waits for the return of this one. */
KEPT awaited_inside(void)
{
	call_target();
	USED(context);
}

/* It has the arguments of an allocation, so that pgleak's own programs can wait for it. */
__attribute__((noipa)) void *awaited(const void *in, size_t size)
{
	USED(in);
	chunk.size = size;
	awaited_inside();
	return chunk.bytes;
}

KEPT pending_return(void)
{
	void *bytes = awaited(context, 24);
	USED(bytes);
}

/* A library that is not there when the process is looked at; its path is in the environment. */
KEPT from_library(void)
{
	call_target();
}

KEPT with_library(void)
{
	void *library = dlopen(getenv("SHAPES_LIBRARY"), RTLD_NOW);
	void (*through)(void (*)(void)) = library == NULL ? NULL : (void (*)(void (*)(void)))dlsym(library, "through");
	if (through == NULL)
		abort();
	through(from_library);
	USED(library);
}

static const struct {
	const char *name;
	void (*run)(void);
} shapes[] = {
	{"plain", plain},
	{"aligned", aligned},
	{"aligned_alloca", aligned_alloca},
	{"sorted", sorted},
	{"signalled", signalled},
	{"trapped", trapped},
	{"deepest_whole", deepest_whole},
	{"too_deep", too_deep},
	{"large_frame", large_frame},
	{"bound_lazily", bound_lazily},
	{"left_by_jump", left_by_jump},
	{"absent_pages", absent_pages},
	{"pending_return", pending_return},
	{"with_library", with_library},
};

int main(void)
{
	char line[64];
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin) != NULL) {
		line[strcspn(line, "\n")] = '\0';
		for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
			if (strcmp(line, shapes[i].name) == 0)
				shapes[i].run();
		puts("done");
		fflush(stdout);
	}
	return 0;
}
