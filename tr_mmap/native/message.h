/* Messages in their usual form, as tr_mmap.protocol encodes them: written and read without an object for each. What is
 * not in that form (escapes in its texts, other members, or other order) is not refused here: it goes the long way. */
#ifndef TR_MMAP_MESSAGE_H
#define TR_MMAP_MESSAGE_H

#include "native.h"

enum {
    MESSAGE_NBYTES = 4096, /* most that a message of the usual form has after its number */
    MOST_TENSORS = 16,     /* and most that it names */
};

typedef struct {
    const char *text;
    Py_ssize_t nbytes;
} Span;

#define NOTHING ((Span){"", 0})

typedef struct {
    Span tag, segment;
    uint64_t seq;
} Ref;

/* A request's `text` is its parameters, a response's its result. Members that are left out are empty, or 0. */
typedef struct {
    uint64_t seq, timestamp;
    Span command, text, remark;
    Ref tensors[MOST_TENSORS];
    int count;
} Message;

/* A message that is being written: all that comes after its number. */
typedef struct {
    Py_ssize_t nbytes;
    char text[MESSAGE_NBYTES];
} Draft;

/* The bytes of a text of Python's; 0 if it is no text, or would need escapes. */
int span_of(PyObject *text, Span *span);

/* Write a message but its number, "message" included if it is not empty; 0 if it is too long. */
int message_write(Draft *draft, const Message *message, int is_response);

/* Read a line; 0 if it is not in the usual form. The spans are of the line. */
int message_read(const char *line, Py_ssize_t nbytes, int is_response, Message *message);

uint64_t now_ms(void);

#endif
