/* What the parts of the extension share. See __init__.py for what it is for. */
#ifndef TR_MMAP_NATIVE_H
#define TR_MMAP_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

extern PyTypeObject BellType;
extern PyTypeObject LineType;
extern PyTypeObject MappingType;
extern PyTypeObject PageType;

extern const char copy_doc[];
PyObject *copy(PyObject *module, PyObject *const *arguments, Py_ssize_t count);

extern const char has_as_many_colons_doc[];
PyObject *has_as_many_colons(PyObject *module, PyObject *const *arguments, Py_ssize_t count);

extern const char map_file_doc[];
PyObject *map_file(PyObject *module, PyObject *arguments);

extern const char open_usual_doc[];
PyObject *open_usual(PyObject *module, PyObject *arguments);

/* Part of a file in memory; NULL with an OSError. */
PyObject *map_part(int fd, Py_ssize_t nbytes, Py_ssize_t offset, int is_writable, int is_private);

/* A clock that nobody sets. */
double now_us(void);

/* Copy bytes, letting other threads of Python run meanwhile if there are many. */
void copy_memory(char *to, const char *from, Py_ssize_t nbytes);

static inline uint64_t load_acquire(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

static inline void store_release(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }

/* Sleep until a semaphore is rung: 1 if it was, or a signal handler ran; 0 when the time is over; -1 with an exception. */
int wait_for_bell(PyObject *bell, double timeout_s);

/* Ring an open bell; whatever comes of it. */
void ring_bell(PyObject *bell);

/* Hold a writable buffer of at least `nbytes`, aligned for 8-byte words; -1 with an exception if it is not one. */
int hold_buffer(PyObject *source, Py_buffer *view, Py_ssize_t nbytes);

#endif
