/* The live line and the lease lines of a segment's header: the words by which its owner and its readers coordinate. Never
 * waits, never locks. The docstring of tr_mmap.tsr says what each word means. */
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

_Static_assert(WIRE_LINES_OFFSET + WIRE_MAX_READERS * WIRE_LINE_NBYTES == WIRE_HEAD_NBYTES, "the lines end with the page");
_Static_assert(WIRE_MAX_READERS % sizeof(uint64_t) == 0, "members are looked at in words");

/* The type LeaseWords; the types of both segments begin with it. */
typedef struct {
    STATEFUL_HEAD
    Py_buffer buffer;
    Py_buffer members_buffer;
    LiveLine *live;          /* NULL until __init__ has run */
    const uint64_t *members; /* of an owner: a byte for each lease line, set while it has a reader; NULL for none */
    uint64_t *lease;         /* of a reader: in its line, or in the live line */
} LeaseWords;

enum { NO_LINE = -1 }; /* of the session's own reader, and of owners */

/* Takes the source; the members, which may be NULL or None; and the number of a line, or NO_LINE. */
int lease_words_init(LeaseWords *self, PyObject *source, PyObject *members, Py_ssize_t line);
void lease_words_clear(LeaseWords *self);

/* Whether __init__ has run; if not, with an exception. */
int lease_words_is_initialised(LeaseWords *self);

/* The number of a line from Python, or NO_LINE for None and NULL; -2 with an exception. */
Py_ssize_t parse_line(PyObject *argument);

extern const char set_member_doc[];
PyObject *py_set_member(PyObject *module, PyObject *const *arguments, Py_ssize_t count);

/* Owner: the strongest lease that a reader has now. */
static inline uint64_t strongest_lease(const LeaseWords *self) {
    /* acquire: the owner's next stores to the payload must come after the readers' last loads */
    uint64_t lease = load_acquire(&self->live->lease);
    for (size_t word = 0; self->members != NULL && word < WIRE_MAX_READERS / sizeof(uint64_t); word++) {
        /* A reader sets its member byte before its first lease, and clears it after the end of its last one. */
        uint64_t present = load_acquire(self->members + word);
        const unsigned char *bytes = (const unsigned char *)&present;
        for (size_t byte = 0; present != 0 && byte < sizeof present; byte++) {
            if (bytes[byte] == 0) continue;
            size_t line = word * sizeof present + byte;
            const char *head = (const char *)self->live - WIRE_LIVE_OFFSET;
            uint64_t other = load_acquire((const uint64_t *)(head + WIRE_LINES_OFFSET + line * WIRE_LINE_NBYTES));
            if (other > lease) lease = other;
        }
    }
    return lease;
}

/* Owner: store a seq that no reader accepts, 0 or WIRE_SEQ_RETIRED, so that no reader can acquire a lease any more.
 * Returns the strongest lease, or WIRE_LEASE_PINNED if a guest came. */
static inline uint64_t clear_seq(const LeaseWords *self, uint64_t seq) {
    __atomic_store_n(&self->live->seq, seq, __ATOMIC_RELAXED);
    /* The owner stores seq and then reads the leases; a reader stores its lease and then reads seq. With a full fence
     * between store and read on both sides, at least one of the two sees the other's store. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (__atomic_load_n(&self->live->guest, __ATOMIC_RELAXED) != 0) return WIRE_LEASE_PINNED;
    return strongest_lease(self);
}

/* Owner: publish what is in the segment under a sequence number. */
static inline void stamp(LiveLine *live, uint64_t seq) {
    store_release(&live->seq_copy, seq);
    store_release(&live->seq, seq);
}

/* Reader: hold the lease. Returns the number of the layout, or 0 if the tensor is not the one that was published under
 * `seq`: then the caller releases the lease, unless it still has views of the segment. */
static inline uint64_t acquire_lease(const LeaseWords *self, uint64_t seq) {
    const LiveLine *live = self->live;
    __atomic_store_n(self->lease, WIRE_LEASE_HELD, __ATOMIC_RELAXED);
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
