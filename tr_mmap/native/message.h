/* Control messages in canonical form: exactly the form that tr_mmap.protocol.messages writes, without escapes of the form
 * \\uXXXX. They are written and read without a Python object for each. A message in another form (such escapes, other
 * members, or another order) is never called wrong here: it takes the slow path. */
#ifndef TR_MMAP_MESSAGE_H
#define TR_MMAP_MESSAGE_H

#include "native.h"

enum {
    /* of a message after its number, as a slot of a ring holds it; a draft lies on the stack */
    MAX_CANONICAL_NBYTES = WIRE_RING_SLOT_NBYTES - WIRE_MESSAGE_REST_OFFSET - 1,
    MAX_CANONICAL_TENSORS = 16,  /* named in a message; most requests name one or two */
};

/* Bytes of a text; the span does not keep the text alive. */
typedef struct {
    const char *text;
    Py_ssize_t nbytes;
    enum {
        AS_IT_IS,  /* the same in JSON */
        TO_ESCAPE, /* a text that needs escapes in JSON */
        ESCAPED,   /* as JSON has it, with escapes */
    } form;
} Span;

#define EMPTY_SPAN ((Span){"", 0, AS_IT_IS})

/* Where a tensor is; as TensorRef in Python. */
typedef struct {
    Span tag, segment;
    uint64_t seq;
} Ref;

/* A request or a response. A member that is left out is empty, or 0. */
typedef struct {
    uint64_t seq, timestamp;
    Span command;
    Span text;   /* a request's parameters, a response's result */
    Span remark; /* a response's member `message` */
    Ref tensors[MAX_CANONICAL_TENSORS];
    Span drops[MAX_CANONICAL_TENSORS]; /* of a request: tags that are gone */
    int count, dropped;                /* of tensors, and of drops */
    int is_named; /* the text holds values by name, as protocol/named_values.py has them */
} Message;

/* A message that is being written: all that comes after its number. */
typedef struct {
    Py_ssize_t nbytes;
    char text[MAX_CANONICAL_NBYTES];
} Draft;

/* The bytes of a Python text; 0 if it is no text, or needs escapes that the canonical form lacks. */
int span_of(PyObject *text, Span *span);

/* The text of a span that is ESCAPED; NULL with an exception. */
PyObject *unescaped(Span span);

/* Write a message without its number; 0 if it is too long for a draft. */
int message_write(Draft *draft, const Message *message, int is_response);

/* Read a line; 0 if it is not in canonical form. The message's spans are of the line. */
int message_read(const char *line, Py_ssize_t nbytes, int is_response, Message *message);

/* Milliseconds since 1970. */
uint64_t now_ms(void);

#endif
