/* What the short cuts of both sides share: their end of the channel, and the tensors on their side of it. */
#ifndef TR_MMAP_END_H
#define TR_MMAP_END_H

#include "arrays.h"
#include "message.h"
#include "page.h"
#include "shelves.h"

extern PyTypeObject AnswererType;
extern PyTypeObject AskerType;
extern PyTypeObject EndType;

typedef struct {
    PyObject_HEAD
    PyObject *out, *in;             /* pages */
    PyObject *peer_bell, *own_bell;
    double slice_s;                 /* most that a wait sleeps at a time, for a ring may be lost */
    PyObject *pool;                 /* of our tensors */
    PyObject *mapped;               /* a dict: the peer's segments by their names */
    PyObject *held;                 /* a list: our segments that the message under way names */
} End;

/* The first arguments of a type's __init__, in the order of the fields. */
enum { END_FIELDS = 8 };
int end_init(End *self, PyObject *const *arguments);
int end_traverse(End *self, visitproc visit, void *arg);
int end_clear(End *self);

/* A view of a segment of the peer's; NULL if it cannot be had that simply, with an exception or not. */
PyObject *end_view(const End *self, PyObject *name, uint64_t seq);

/* Say in a message where one of our tensors is; 0 if that cannot be said in the usual form. */
int end_refer(Message *message, PyObject *segment);

/* A span as a text of Python's; NULL with an exception. */
PyObject *text_of(Span span);

/* Call a type with so many fields, of which it takes over the references; NULL with an exception, also if one is NULL. */
PyObject *make(PyObject *type, PyObject *const *fields, size_t count);

/* Release all that is held; -1 with an exception. */
int end_release(End *self);

/* Await a line, and read it if it is in the usual form. Else, and where no message came, it gives None, and whatever came
 * waits to be taken; NULL with an exception. The message's spans are of the line. */
PyObject *end_await(End *self, double timeout_s, Ends ends, void *context, int is_response, Message *message);

#endif
