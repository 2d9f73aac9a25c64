/* What the fast paths of both sides share: one side's pages and doorbells, and the tensors on its side. Sends
 * nothing. */
#ifndef TR_MMAP_ENDPOINT_H
#define TR_MMAP_ENDPOINT_H

#include "free_lists.h"
#include "message.h"
#include "ring.h"
#include "torch_tensors.h"

extern PyType_Spec controller_fast_path_spec, endpoint_spec, worker_fast_path_spec;

enum { RECENT_TEXTS = 16, MAX_RECENT_NBYTES = 64 };

/* The types of both fast paths begin with it. */
typedef struct {
    STATEFUL_HEAD
    PyObject *out, *own;                    /* the rings that this side writes and reads */
    PyObject *peer_doorbell, *own_doorbell; /* semaphores: posted after each message; waited for */
    double slice_s;                         /* the longest single sleep, for a post may be lost */
    PyObject *pool;                         /* the free lists of this side's segments */
    PyObject *mapped;                       /* a dict: from a name to the peer's segment that is mapped here */
    PyObject *held;                         /* a list: this side's segments that the message in flight names */
    char is_private[FRAMEWORKS];            /* whether received tensors are this side's own, by framework */
    unsigned generation;                    /* of the process that the channel belongs to */
    PyObject *recent[RECENT_TEXTS];         /* ASCII texts of messages, for the next message often has the same */
} Endpoint;

/* The first arguments of both types' __init__, in the order of the fields. */
enum { ENDPOINT_ARGUMENTS = 9 };

/* Check them, and read the slice, whose code may run meanwhile; -1 with an exception. */
int endpoint_parse(const Endpoint *self, PyObject *const *arguments, double *slice_s);

/* Set the fields; runs no code of Python's. */
void endpoint_set(Endpoint *self, PyObject *const *arguments, double slice_s);

/* Whether __init__ has run already; then with an exception. */
int endpoint_has_run_init(const Endpoint *self);
int endpoint_traverse(Endpoint *self, visitproc visit, void *arg);
int endpoint_clear(Endpoint *self);
void endpoint_dealloc(Endpoint *self);

/* Whether this process was forked from the endpoint's: pages, doorbells and segments are the parent's. */
static inline int endpoint_is_foreign(const Endpoint *self) { return self->generation != fork_generation; }

/* The tensor in a segment of the peer's; NULL if the slow path is needed, with an exception or without. */
PyObject *endpoint_receive(const Endpoint *self, PyObject *name, uint64_t seq, Framework framework);

/* Release all segments that are held; -1 with an exception, and then those that were not released are still held. */
int endpoint_release(Endpoint *self);

/* Name one of this side's segments in a message; 0 if the canonical form has no place for it. */
int message_add_segment(const Endpoint *self, Message *message, PyObject *segment);

/* Name the segment of another pool that a view is of; 0 if `links` has no name for it, see find_link(). The name is good
 * until other code runs. */
int message_add_view(const Endpoint *self, Message *message, PyObject *view, PyObject *links);

/* A span as a Python text; NULL with an exception, also if one is set already. */
PyObject *text_of(Endpoint *self, Span span);

/* Call a type with `count` positional arguments, and take over the references to them; NULL with an exception,
 * also if an argument is NULL. */
PyObject *construct(PyObject *type, PyObject *const *arguments, size_t count);

#endif
