/* What every file of the extension shares. Knows no numpy: arrays.h adds that. __init__.py says what it is for.
 * Python calls a function py_NAME by the name NAME. */
#ifndef TR_MMAP_NATIVE_H
#define TR_MMAP_NATIVE_H

#include "state.h"

#include <stddef.h>
#include <stdint.h>

#include "wire.h"

extern PyType_Spec heartbeat_spec, lease_words_spec, mapping_spec, ring_spec, mirror_spec, semaphore_spec;

extern const char copy_doc[];
PyObject *py_copy(PyObject *module, PyObject *const *arguments, Py_ssize_t count);

extern const char has_as_many_colons_doc[];
PyObject *py_has_as_many_colons(PyObject *module, PyObject *const *arguments, Py_ssize_t count);

extern const char map_file_doc[];
PyObject *py_map_file(PyObject *module, PyObject *arguments);

/* Fill the table for the checksum of headers; once, when the module is made. */
void crc_prepare(void);

extern const char quick_load_doc[];
PyObject *py_quick_load(PyObject *module, PyObject *arguments);

/* Counts forks: one more in each forked child. An object keeps the value at which it was made. Where the two differ,
 * the object, and the shared memory that it stands for, belong to the parent. */
extern unsigned fork_generation;

/* Map part of a file; NULL with an OSError. */
PyObject *map_part(const ModuleState *state, int fd, Py_ssize_t nbytes, Py_ssize_t offset, int is_writable, int is_private);
/* Whether no page of a copy-on-write mapping was stored to; 0 also if the kernel cannot tell (before Linux 6.7), or if the
 * mapping is so small that to ask takes longer than it saves. Calls nothing of Python's. */
int has_file_pages_only(const void *address, size_t nbytes);

/* Whether it is such a mapping, and Python has given it an object to keep. */
int is_mapping_with_kept(const ModuleState *state, PyObject *object);

/* Get and set an attribute that is a uint64_t; the closure of its PyGetSetDef is its offset. A PyMemberDef would not
 * do: CPython 3.13 takes a negative number there, as a large one. */
PyObject *get_unsigned(PyObject *self, void *offset);
int set_unsigned(PyObject *self, PyObject *value, void *offset);

/* Whether this is the thread in which Python runs signal handlers. */
int is_main_thread(void);

/* Monotonic time in microseconds. */
double now_us(void);

/* Copy bytes; a large copy runs without the GIL. */
void copy_memory(char *to, const char *from, Py_ssize_t nbytes);

static inline uint64_t load_acquire(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

static inline void store_release(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }

/* Whether __init__ of a Semaphore has run; if not, with an exception. */
int semaphore_is_initialised(PyObject *semaphore);

/* Sleep until a Semaphore is posted, once: 1 if it was, or if a signal handler ran; 0 when the time is over; -1 with an
 * exception. Looks for signals before it sleeps and whenever it returns. */
int semaphore_wait(PyObject *semaphore, double timeout_s);

/* The longest single sleep of a wait that has lasted for `waited_s`; wire/waits.py gives the reasons. */
double longest_sleep_s(double slice_s, double waited_s);

/* A time of a wait in seconds; -1 with an exception if it is not a number. */
int parse_time(PyObject *argument, double *seconds);

/* The longest single sleep in seconds; -1 with an exception if it is none. */
int parse_slice(PyObject *argument, double *seconds);

/* Post an open semaphore; a failure is ignored. */
void semaphore_post(PyObject *semaphore);

/* Get a writable C-contiguous buffer that holds no Python objects; -1 with an exception if `target` has none. */
int get_writable_buffer(PyObject *target, Py_buffer *buffer);

/* The same of at least `nbytes`, aligned for 8-byte words; -1 with an exception if `source` has none. */
int get_word_buffer(PyObject *source, Py_buffer *buffer, Py_ssize_t nbytes);

#endif
