/* What the fast paths use of the types Mirror and Heartbeat. */
#ifndef TR_MMAP_MIRROR_H
#define TR_MMAP_MIRROR_H

#include "native.h"

extern PyTypeObject HeartbeatType;
extern PyTypeObject MirrorType;

/* Write the page's line into the mirror, unless its first 16 bytes are those written last. Never fails: what cannot be
 * written stays as it is. */
void mirror_update(PyObject *mirror);

/* Store the present time in the heartbeat's word. */
void heartbeat_touch(uint64_t *word);

#endif
