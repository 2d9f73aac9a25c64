/* What older versions of Python lack, under the names of the newer ones. Nothing else asks for Python's version. */
#ifndef TR_MMAP_COMPAT_H
#define TR_MMAP_COMPAT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <structmember.h>

#if PY_VERSION_HEX < 0x030C0000
/* Take the exception that is set, so that none is set any more; NULL if there is none. */
static inline PyObject *PyErr_GetRaisedException(void) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    if (type == NULL) return NULL;
    PyErr_NormalizeException(&type, &value, &trace);
    if (trace != NULL) PyException_SetTraceback(value, trace);
    Py_XDECREF(trace);
    Py_DECREF(type);
    return value;
}

/* Set an exception, and take over the reference to it; clear the one that is set if it is NULL. */
static inline void PyErr_SetRaisedException(PyObject *value) {
    if (value == NULL) PyErr_Clear();
    else PyErr_Restore(Py_NewRef(Py_TYPE(value)), value, PyException_GetTraceback(value));
}
#endif

#if PY_VERSION_HEX < 0x030D0000
/* Get a new reference to the object of a weak reference, and return 1; NULL and 0 if the object is gone. */
static inline int PyWeakref_GetRef(PyObject *weak, PyObject **object) {
    PyObject *found = PyWeakref_GET_OBJECT(weak);
    *object = found == Py_None ? NULL : Py_NewRef(found);
    return *object != NULL;
}
#endif

/* The slots of a module that works in the main interpreter only, and with the interpreter's lock. */
#if PY_VERSION_HEX >= 0x030C0000
#define MAIN_INTERPRETER_ONLY {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#else
#define MAIN_INTERPRETER_ONLY
#endif
#ifdef Py_mod_gil
#define WITH_THE_LOCK {Py_mod_gil, Py_MOD_GIL_USED},
#else
#define WITH_THE_LOCK
#endif

#endif
