/* What the fast paths use of the types Mirror and Heartbeat. */
#ifndef TR_MMAP_MIRROR_H
#define TR_MMAP_MIRROR_H

#include "native.h"

/* Whether __init__ has run; if not, with an exception. The other functions are for mirrors of which it has. */
int mirror_is_initialised(PyObject *mirror);

/* Whether the page's first 16 bytes are not those written last. */
int mirror_is_stale(PyObject *mirror);

/* Write the page's line into the mirror, if it is stale. Never fails: what cannot be written stays as it is. */
void mirror_update(PyObject *mirror);

/* Make the mirror stale, because the other side may write the file. */
void mirror_forget(PyObject *mirror);

/* Whether nothing was written since the mirror was forgotten. */
int mirror_is_forgotten(PyObject *mirror);

/* Whether the page begins with a word. */
int mirror_page_says(PyObject *mirror, const char *word);

/* Write that the worker is busy, if the page says that it waits for requests; else the page's line. The mirror becomes
 * stale when the page changes. Never fails. */
void mirror_foretell_busy(PyObject *mirror);

/* The word of a status page that says when the worker last worked. */
typedef struct {
    uint64_t *address;
    uint64_t last_value; /* what was stored there last, and the time that it says */
    uint32_t last_ms;
} HeartbeatWord;

/* Store the present time in the word. */
void heartbeat_touch(HeartbeatWord *self);

#endif
