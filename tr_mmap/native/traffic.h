/* What the controller's fast path and Python share of the requests of a session. Sends nothing. */
#ifndef TR_MMAP_TRAFFIC_H
#define TR_MMAP_TRAFFIC_H

#include "native.h"

extern PyType_Spec counters_spec, pending_spec, turn_spec;

/* A request, from the moment that it is made until its answer was consumed. controller/pending.py says what each field
 * means. The objects are NULL for None. */
typedef struct {
    PyObject_HEAD
    PyObject *message, *framework, *outcome, *asker, *on_done;
    PyObject *held; /* a list of this side's segments that the request names */
    double deadline_s; /* of a call; 0 for all others */
    long seq;
    uint64_t order;
    char is_abandoned, is_given_up, is_lost, is_sent;
} Pending;

/* A request that any thread may make next; NULL with an exception. */
Pending *pending_new(const ModuleState *state, PyObject *message, PyObject *framework);

/* Which thread has a turn; its thread identifier, or 0. */
typedef struct {
    PyObject_HEAD
    unsigned long owner;
    PyObject *queue; /* of the threads that wait for it; NULL until Python has set it */
    PyObject *on_free; /* called once when it is given back; NULL or None for nothing */
} TurnWords;

/* Whether no thread has the turn, and none waits for it. */
int turn_is_free(PyObject *turn);

/* Let the threads look that wait for the turn, if there are any; -1 with an exception. */
int turn_wake(PyObject *turn);

typedef struct {
    PyObject_HEAD
    long seq;      /* the number of the last request */
    uint64_t sent; /* how many requests were sent */
    int limit;     /* most requests in flight */
    int blocked;   /* how many reasons there are to send none */
    char is_watched; /* Python looks how far requests are, so it sends them */
} Counters;

#endif
