/* Preloaded into user-mode Linux, which otherwise does not boot on a processor with wide registers (AMX).
 *
 * Its kernel, 6.1, sets a process's registers by PTRACE_SETREGSET with a buffer for those that it knows. The host's
 * kernel takes a whole one alone (arch/x86/kernel/fpu/regset.c, xstateregs_set) and says EFAULT: "ptrace set fp regs
 * failed". What lies behind a short buffer is given as unused here. Mended in 6.13: "um: Fix FP register size for
 * XSTATE/XSAVE".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

static long (*libc_ptrace)(int, ...);
static char whole[65536]; /* not on the stack: the kernel's own is small; it has one thread that does this */
static size_t size;       /* of a whole buffer, once a short one was refused */

__attribute__((constructor)) static void find(void)
{
	libc_ptrace = (long (*)(int, ...))dlsym(RTLD_NEXT, "ptrace");
}

static long set_whole(pid_t pid, void *set, const struct iovec *given)
{
	struct iovec vector = {whole, sizeof(whole)};

	if (!size) {
		if (libc_ptrace(PTRACE_GETREGSET, pid, set, &vector) < 0)
			return -1;
		size = vector.iov_len;
		memset(whole, 0, sizeof(whole));
	}
	if (given->iov_len >= size) {
		errno = EFAULT;
		return -1;
	}
	memcpy(whole, given->iov_base, given->iov_len);
	vector.iov_len = size;
	return libc_ptrace(PTRACE_SETREGSET, pid, set, &vector);
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list words;
	va_start(words, request);
	pid_t pid = va_arg(words, pid_t);
	void *address = va_arg(words, void *);
	void *data = va_arg(words, void *);
	va_end(words);

	if (request != PTRACE_SETREGSET || address != (void *)NT_X86_XSTATE)
		return libc_ptrace(request, pid, address, data);
	if (!size) {
		long done = libc_ptrace(request, pid, address, data);
		if (done == 0 || errno != EFAULT)
			return done;
	}
	return set_whole(pid, address, data);
}
