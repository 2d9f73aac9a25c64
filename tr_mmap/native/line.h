/* The live line of a segment's header: the words that its owner and its reader coordinate through. */
#ifndef TR_MMAP_LINE_H
#define TR_MMAP_LINE_H

#include "native.h"

/* As segments/layout.py and the docstring of tr_mmap.tsr have it, from byte 64 of the file on. */
enum { LINE_OFFSET = 64, LINE_NBYTES = 64 };

typedef struct {
    uint64_t seq, layout, lease, guest, unused[3], seq_copy;
} Words;

_Static_assert(sizeof(Words) == LINE_NBYTES, "one cache line");

static const uint64_t FREE = 0, HELD = 1, PINNED = 2, RETIRED = UINT64_MAX;

typedef struct {
    PyObject_HEAD
    Py_buffer buffer;
    Words *words; /* NULL until it is made */
} Line;

int line_init(Line *self, PyObject *source);
void line_clear(Line *self);
int line_is_made(Line *self);

/* Between a store of ours and a look at what the other side stores: at least one of us sees the other. */
static inline void full_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

/* Owner: let nobody enter any more, and say so by seq; the lease as it stands, or PINNED if a guest came. */
static inline uint64_t shut(Words *words, uint64_t seq) {
    __atomic_store_n(&words->seq, seq, __ATOMIC_RELAXED);
    full_fence();
    if (__atomic_load_n(&words->guest, __ATOMIC_RELAXED) != 0) return PINNED;
    return load_acquire(&words->lease); /* its views' loads are before our stores */
}

/* Owner: publish what is in the segment under a number. */
static inline void stamp(Words *words, uint64_t seq) {
    store_release(&words->seq_copy, seq);
    store_release(&words->seq, seq);
}

/* Reader: hold the lease; which layout it is, or 0 if it is another tensor by now. */
static inline uint64_t enter(Words *words, uint64_t wanted) {
    __atomic_store_n(&words->lease, HELD, __ATOMIC_RELAXED);
    full_fence(); /* an owner who has not seen it yet has cleared seq already */
    if (wanted == 0 || wanted == RETIRED || load_acquire(&words->seq) != wanted ||
        load_acquire(&words->seq_copy) != wanted)
        return 0;
    return load_acquire(&words->layout);
}

/* A sequence number of Python's; 0 for one that no segment can have, and UINT64_MAX with an exception for no number. */
static inline uint64_t seq_of(PyObject *number) {
    uint64_t seq = PyLong_AsUnsignedLongLong(number);
    if (seq == UINT64_MAX && PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_OverflowError)) {
        PyErr_Clear();
        return 0;
    }
    return seq;
}

#endif
