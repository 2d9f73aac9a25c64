/* Copies an array's bytes into mapped memory: a large one by two threads where there are two processors to run
 * them, because one core does not use the memory's whole bandwidth (64 MiB: 3 ms against 6 ms). Converts nothing. */
#include "native.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum {
    RELEASE_GIL_NBYTES = 64 << 10, /* from here on, releasing the GIL costs nothing beside the copy */
    SPLIT_NBYTES = 4 << 20,        /* from here on, starting a thread costs nothing beside the copy */
    SPLIT_ALIGNMENT_NBYTES = 4096, /* the two threads share no page */
};

typedef struct {
    char *to;
    const char *from;
    size_t nbytes;
} Part;

#ifdef __SSE2__
enum { LINE_NBYTES = 64, WORD_NBYTES = sizeof(__m128i) };

/* Copy by stores past the caches. The two do not overlap. */
static void stream(char *to, const char *from, size_t nbytes) {
    size_t head = -(uintptr_t)to % LINE_NBYTES;
    if (head > nbytes) head = nbytes;
    memcpy(to, from, head);
    to += head;
    from += head;
    nbytes -= head;
    for (; nbytes >= LINE_NBYTES; nbytes -= LINE_NBYTES, to += LINE_NBYTES, from += LINE_NBYTES) {
        __m128i words[LINE_NBYTES / WORD_NBYTES];
        for (size_t index = 0; index < LINE_NBYTES / WORD_NBYTES; index++)
            words[index] = _mm_loadu_si128((const __m128i *)from + index);
        for (size_t index = 0; index < LINE_NBYTES / WORD_NBYTES; index++)
            _mm_stream_si128((__m128i *)to + index, words[index]);
    }
    _mm_sfence(); /* before whatever says that the bytes are there */
    memcpy(to, from, nbytes);
}
#else
static void stream(char *to, const char *from, size_t nbytes) {
    memcpy(to, from, nbytes);
}
#endif

static void *copy_part(void *argument) {
    Part *part = argument;
    memcpy(part->to, part->from, part->nbytes);
    return NULL;
}

static int has_two_processors(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 1;
}

/* The thread takes no signals: a handler must run in a thread that Python knows. But those of its own faults, a SIGBUS
 * of a file that was truncated say, must reach their handlers: blocked, they end the process without a word. */
static int start(pthread_t *thread, Part *part) {
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT};
    sigset_t others, previous;
    sigfillset(&others);
    for (size_t index = 0; index < sizeof faults / sizeof *faults; index++) sigdelset(&others, faults[index]);
    pthread_sigmask(SIG_BLOCK, &others, &previous);
    int code = pthread_create(thread, NULL, copy_part, part);
    pthread_sigmask(SIG_SETMASK, &previous, NULL);
    return code == 0;
}

static void copy_large(char *to, const char *from, size_t nbytes) {
    size_t half = 0;
    if (nbytes >= SPLIT_NBYTES && has_two_processors()) half = nbytes / 2 & ~(size_t)(SPLIT_ALIGNMENT_NBYTES - 1);
    Part part = {to, from, half};
    pthread_t thread;
    int is_split = half != 0 && start(&thread, &part);
    size_t done = is_split ? half : 0;
    memcpy(to + done, from + done, nbytes - done);
    if (is_split) pthread_join(thread, NULL);
}

static int do_overlap(const char *to, const char *from, Py_ssize_t nbytes) {
    uintptr_t first = (uintptr_t)to, second = (uintptr_t)from;
    return (first > second ? first - second : second - first) < (uintptr_t)nbytes;
}

void copy_memory(char *to, const char *from, Py_ssize_t nbytes) {
    if (nbytes < RELEASE_GIL_NBYTES) {
        memmove(to, from, (size_t)nbytes);
        return;
    }
    Py_BEGIN_ALLOW_THREADS
    if (do_overlap(to, from, nbytes)) memmove(to, from, (size_t)nbytes);
    else copy_large(to, from, (size_t)nbytes);
    Py_END_ALLOW_THREADS
}

/* The same past the caches, for memory that other cores have read. In one thread: it takes less than two others do. */
static void stream_memory(char *to, const char *from, Py_ssize_t nbytes) {
    if (nbytes < RELEASE_GIL_NBYTES || nbytes >= SPLIT_NBYTES || do_overlap(to, from, nbytes)) {
        copy_memory(to, from, nbytes);
        return;
    }
    Py_BEGIN_ALLOW_THREADS
    stream(to, from, (size_t)nbytes);
    Py_END_ALLOW_THREADS
}

const char copy_doc[] =
    "copy(target, offset, source, is_for_others=False)\n--\n\n"
    "Copy the bytes of a C-contiguous buffer to a place in a writable one; they may overlap.\n\n"
    "Args:\n"
    "    target, offset, source: from where to where.\n"
    "    is_for_others: whether other cores have read that memory and will read it again, but not this one. Then the\n"
    "        copy goes past the caches. An ordinary store waits until the other core has given the line up (1 MiB: 40 us\n"
    "        against up to 280 us); one process that writes and reads in turns is slower without its cache.\n\n"
    "Raises:\n"
    "    BufferError, ValueError: the source is not C-contiguous, or is no buffer; or it does not fit there; or the\n"
    "        target holds Python objects.";

PyObject *py_copy(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
    (void)module;
    if (count != 3 && count != 4) {
        PyErr_SetString(PyExc_TypeError, "copy takes a target, an offset, a source, and perhaps whether it is for others");
        return NULL;
    }
    Py_ssize_t offset = PyLong_AsSsize_t(arguments[1]);
    if (offset == -1 && PyErr_Occurred()) return NULL;
    int is_for_others = count == 4 ? PyObject_IsTrue(arguments[3]) : 0;
    if (is_for_others < 0) return NULL;
    Py_buffer to, from;
    if (get_writable_buffer(arguments[0], &to) < 0) return NULL;
    if (PyObject_GetBuffer(arguments[2], &from, PyBUF_C_CONTIGUOUS) < 0) {
        PyBuffer_Release(&to);
        return NULL;
    }
    int fits = offset >= 0 && offset <= to.len && from.len <= to.len - offset;
    if (!fits) PyErr_SetString(PyExc_ValueError, "the source does not fit into the target there");
    else if (is_for_others) stream_memory((char *)to.buf + offset, from.buf, from.len);
    else copy_memory((char *)to.buf + offset, from.buf, from.len);
    PyBuffer_Release(&from);
    PyBuffer_Release(&to);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}
