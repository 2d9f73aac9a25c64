/* What the fast paths use of the types Mirror and Heartbeat. */
#ifndef TR_MMAP_MIRROR_H
#define TR_MMAP_MIRROR_H

#include "native.h"

extern PyTypeObject HeartbeatType;
extern PyTypeObject MirrorType;

/* Whether the page's first 16 bytes are not those written last. */
int mirror_is_stale(PyObject *mirror);

/* Write the page's line into the mirror, if it is stale. Never fails: what cannot be
 * written stays as it is. */
void mirror_update(PyObject *mirror);

/* Store the present time in the heartbeat's word. */
void heartbeat_touch(uint64_t *word);

#endif
