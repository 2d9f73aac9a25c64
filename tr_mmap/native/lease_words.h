/* The live line of a segment's header: the words by which its owner and its reader coordinate. Never waits, never
 * locks. The docstring of tr_mmap.tsr says what each word means. */
#ifndef TR_MMAP_LEASE_WORDS_H
#define TR_MMAP_LEASE_WORDS_H

#include "native.h"

typedef struct {
    uint64_t seq, layout_seq, lease, guest, reserved[3], seq_copy;
} LiveLine;

#define CHECK_LIVE_OFFSET(field, offset) \
    _Static_assert(WIRE_LIVE_OFFSET + offsetof(LiveLine, field) == (offset), "wire/header.py has " #field " elsewhere")
CHECK_LIVE_OFFSET(seq, WIRE_SEQ_OFFSET);
CHECK_LIVE_OFFSET(layout_seq, WIRE_LAYOUT_SEQ_OFFSET);
CHECK_LIVE_OFFSET(lease, WIRE_LEASE_OFFSET);
CHECK_LIVE_OFFSET(guest, WIRE_GUEST_OFFSET);
CHECK_LIVE_OFFSET(reserved, WIRE_RESERVED_OFFSET);
CHECK_LIVE_OFFSET(seq_copy, WIRE_SEQ_COPY_OFFSET);
_Static_assert(sizeof(LiveLine) == WIRE_LIVE_NBYTES, "the live line is one cache line");

/* The type LeaseWords; the types of both segments begin with it. */
typedef struct {
    STATEFUL_HEAD
    Py_buffer buffer;
    LiveLine *live; /* NULL until __init__ has run */
} LeaseWords;

int lease_words_init(LeaseWords *self, PyObject *source);
void lease_words_clear(LeaseWords *self);

/* Whether __init__ has run; if not, with an exception. */
int lease_words_is_initialised(LeaseWords *self);

/* Owner: store a seq that no reader accepts, 0 or WIRE_SEQ_RETIRED, so that no reader can acquire the lease any
 * more. Returns the lease as it stands, or WIRE_LEASE_PINNED if a guest came. */
static inline uint64_t clear_seq(LiveLine *live, uint64_t seq) {
    __atomic_store_n(&live->seq, seq, __ATOMIC_RELAXED);
    /* The owner stores seq and then reads the lease; the reader stores the lease and then reads seq. With a full fence
     * between store and read on both sides, at least one of the two sees the other's store. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (__atomic_load_n(&live->guest, __ATOMIC_RELAXED) != 0) return WIRE_LEASE_PINNED;
    /* acquire: the owner's next stores to the payload must come after the reader's last loads */
    return load_acquire(&live->lease);
}

/* Owner: publish what is in the segment under a sequence number. */
static inline void stamp(LiveLine *live, uint64_t seq) {
    store_release(&live->seq_copy, seq);
    store_release(&live->seq, seq);
}

/* Reader: hold the lease. Returns the number of the layout, or 0 if the tensor is not the one that was published under
 * `seq`: then the caller releases the lease, unless it still has views of the segment. */
static inline uint64_t acquire_lease(LiveLine *live, uint64_t seq) {
    __atomic_store_n(&live->lease, WIRE_LEASE_HELD, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* an owner that has not seen the lease yet has cleared seq already */
    if (seq == 0 || seq == WIRE_SEQ_RETIRED || load_acquire(&live->seq) != seq || load_acquire(&live->seq_copy) != seq)
        return 0;
    return load_acquire(&live->layout_seq);
}

/* A sequence number from Python; 0, which no published tensor has, for one out of range; UINT64_MAX with an exception
 * for what is not a number. */
static inline uint64_t parse_seq(PyObject *number) {
    uint64_t seq = PyLong_AsUnsignedLongLong(number);
    if (seq == UINT64_MAX && PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_OverflowError)) {
        PyErr_Clear();
        return 0;
    }
    return seq;
}

#endif
