/* A mapped message page: what the fast paths use of the type MessagePage. Knows no message's meaning. */
#ifndef TR_MMAP_MESSAGE_PAGE_H
#define TR_MMAP_MESSAGE_PAGE_H

#include "native.h"

/* Whether a wait is to end: 1 if so, 0 if not, -1 with an exception. */
typedef int (*StopCheck)(void *context);

/* Whether __init__ has run; if not, with an exception. */
int message_page_is_initialised(PyObject *page);

/* Replace the message by its number and `rest`, all from the comma after the number to the closing brace; 1 if that is
 * done. 0 if the number or the rest does not fit; -1 if a later message was stored already, or in a forked child. */
int message_page_store(PyObject *page, long seq, const char *rest, Py_ssize_t nbytes);

/* Take the next message's line, as MessagePage.wait() does. */
PyObject *message_page_wait(PyObject *page, PyObject *semaphore, double timeout_s, double slice_s,
                            StopCheck should_stop, void *context);

/* After an exception of message_page_wait(): whether the message has no end. Else a signal handler raised. */
int message_page_is_unterminated(PyObject *page);

/* Let the line just taken be taken again. */
void message_page_put_back(PyObject *page);

/* Write those of the mirrors that are stale, as wait() does. */
void message_page_show(PyObject *page);

/* Whether two pages have messages of the same number: the worker has answered the last request. */
int message_page_is_answered(PyObject *request, PyObject *response);

#endif
