/* The inside of the type Ring: its fields, and where things are in its bytes. Only ring*.c use it. */
#ifndef TR_MMAP_RING_FIELDS_H
#define TR_MMAP_RING_FIELDS_H

#include "ring.h"

#include <string.h>
#include <sys/stat.h>

typedef struct {
    STATEFUL_HEAD
    Py_buffer buffer;
    char *slots;                    /* NULL until __init__ has run */
    uint64_t stored, taken;         /* how many messages this side has stored, and taken */
    uint64_t seen[WIRE_RING_SLOTS]; /* the number of the last message that was taken from each slot */
    char *latest;                   /* the slot of the last message that was stored or taken */
    long stored_seq;                /* the number of the last store; 0 before */
    char is_ordered;                /* no number may be below that of the last store */
    double spin_us;                 /* most that sleep() polls for a message before it sleeps */
    int should_spin;                /* the last message came within spin_us, so sleep() polls for the next one */
    PyObject *last_line;            /* bytes: the last line that was looked at */
    PyObject *rejected;             /* bytes or NULL: a line in the next slot that is not the peer's */
    PyObject *mirrors;              /* a tuple of Mirrors, or NULL: those that this side keeps up to date */
    int bell;                       /* a descriptor that wakes a reader which sleeps on it; -1 for none */
    dev_t bell_device;              /* of its file: the program may have closed it, and opened another one */
    ino_t bell_inode;
    int waiters;                    /* how many threads are in sleep() */
    unsigned generation;            /* of the process that stores here; a forked child stores nothing */
} Ring;

static inline char *slot_of(const Ring *self, uint64_t position) {
    return self->slots + position % WIRE_RING_SLOTS * WIRE_RING_SLOT_NBYTES;
}

/* WIRE_NUMBER_DIGITS characters, stored last. */
static inline uint64_t *number_in(char *slot) { return (uint64_t *)(void *)(slot + WIRE_MESSAGE_NUMBER_OFFSET); }

static inline uint64_t blank(void) {
    uint64_t word;
    memcpy(&word, WIRE_BLANK_NUMBER, sizeof word);
    return word;
}

static inline uint64_t *word_at(const Ring *self, size_t offset) {
    return (uint64_t *)(void *)((char *)self->buffer.buf + offset);
}

static inline uint64_t *done_word(const Ring *self) { return word_at(self, WIRE_RING_DONE_OFFSET); }

/* Each side stores one word and then looks at the other's: without the fence, neither might see what the other did. */
static inline void fence_before_look(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

static inline uint64_t *cancel_word(const Ring *self, uint64_t position) {
    return word_at(self, WIRE_RING_CANCEL_OFFSET + position % WIRE_RING_SLOTS * sizeof(uint64_t));
}

/* The number of a message that was not taken; 0 if there is none, or if it is being stored. */
static inline uint64_t number_at(const Ring *self, uint64_t position) {
    uint64_t word = load_acquire(number_in(slot_of(self, position)));
    return word == self->seen[position % WIRE_RING_SLOTS] || word == blank() ? 0 : word;
}

/* Whether there is a message that ring_next() would give. */
int ring_is_next_there(const Ring *self);

/* Take the message at a position, which has a number; 0 if it was taken meanwhile. */
int ring_take(Ring *self, uint64_t position, uint64_t number);

/* Let the peer ring the bell after its next message. Whether a message is there already, for which it may not ring. */
int ring_arm(Ring *self);

/* Say that nobody wants the answer to the message of a position, or take it back. Whether the peer had not begun with it. */
int ring_cancel(Ring *self, uint64_t position, int is_withdrawal);

/* The number of a message as its slot has it. */
uint64_t ring_number_word(long seq);

/* The number that a slot has; 0 if it is no number. */
long ring_number_of(uint64_t word);

/* The slot of the newest message that is there or was taken. */
char *ring_newest_slot(const Ring *self);

#endif
