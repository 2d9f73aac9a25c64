/* A mapped message file, for those who store and await messages without an object of Python's for each. */
#ifndef TR_MMAP_PAGE_H
#define TR_MMAP_PAGE_H

#include "native.h"

/* Whether a wait is to end: 1 if so, 0 if not, -1 with an exception. */
typedef int (*Ends)(void *context);

/* Replace the message by its number and `others`, all from the comma after the number to the closing brace; 0 if it
 * does not fit, and then nothing was stored. */
int page_put(PyObject *page, long seq, const char *others, Py_ssize_t nbytes);

/* Take the next message's line, as Page.wait() does. */
PyObject *page_await(PyObject *page, PyObject *bell, double timeout_s, double slice_s, Ends ends, void *context);

/* Whether that raised because the message has no end, and not what a signal handler did. */
int page_is_endless(PyObject *page);

/* Let the line just taken be taken again. */
void page_restore(PyObject *page);

#endif
