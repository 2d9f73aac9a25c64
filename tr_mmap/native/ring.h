/* A mapped ring of messages: what the fast paths use of the type Ring. Knows no message's meaning. */
#ifndef TR_MMAP_RING_H
#define TR_MMAP_RING_H

#include "native.h"

/* Whether a wait is to end: 1 if so, 0 if not, -1 with an exception. */
typedef int (*StopCheck)(void *context);

/* Whether __init__ has run; if not, with an exception. */
int ring_is_initialised(PyObject *ring);

/* Append a message: its number and `rest`, all from the comma after the number to the closing brace; 0 if the
 * number or the rest does not fit, -1 if a later message was stored already; and then nothing was stored. */
int ring_store(PyObject *ring, long seq, const char *rest, Py_ssize_t nbytes);

/* Sleep as Ring.sleep() does; -1 with an exception. */
int ring_sleep(PyObject *ring, PyObject *semaphore, double timeout_s, double slice_s, StopCheck should_stop,
               void *context);

/* The next message, until it is taken. */
typedef struct {
    PyObject *line; /* the caller's */
    int is_terminated;
    uint64_t position, number;
} RingLine;

/* Look at the next message: 1 if there is one, 0 if not, -1 with an exception. */
int ring_next(PyObject *ring, RingLine *next);

/* Whether it was not taken meanwhile. */
int ring_is_next(PyObject *ring, const RingLine *next);

/* Tell the peer that a handler is to have it, which is not taken yet; 0 if the peer has cancelled it, or taken it back. */
int ring_begin(PyObject *ring, const RingLine *next);

/* Take it, unless it was taken meanwhile, and tell the peer that this side is done with it. */
void ring_advance(PyObject *ring, const RingLine *next);

/* Wake the peer if it sleeps on the bell. To be called after a message was stored. */
void ring_bell(PyObject *ring);

/* Whether the peer has cancelled the message of a position, with which this side has begun. */
int ring_is_cancelled(PyObject *ring, uint64_t position);

/* Whether the peer has taken that message back. It counts only before a handler has the message. */
int ring_is_withdrawn(PyObject *ring, uint64_t position);

/* How many messages this side has stored, and how many of them the peer is done with. */
uint64_t ring_stored(PyObject *ring);
uint64_t ring_done_by_peer(PyObject *ring);

/* Write the mirrors that sleep() keeps up to date, those that are stale. */
void ring_show(PyObject *ring);

/* The slot of the last message that was stored or taken, WIRE_RING_SLOT_NBYTES long. */
const char *ring_latest(PyObject *ring);

#endif
