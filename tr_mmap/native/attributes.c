/* Getters and setters that types share. */
#include "native.h"

static uint64_t *number_at(PyObject *self, void *offset) { return (uint64_t *)((char *)self + (uintptr_t)offset); }

PyObject *get_unsigned(PyObject *self, void *offset) { return PyLong_FromUnsignedLongLong(*number_at(self, offset)); }

int set_unsigned(PyObject *self, PyObject *value, void *offset) {
    if (value == NULL) {
        PyErr_SetString(PyExc_TypeError, "this attribute cannot be deleted");
        return -1;
    }
    unsigned long long number = PyLong_AsUnsignedLongLong(value);
    if (number == (unsigned long long)-1 && PyErr_Occurred()) return -1;
    *number_at(self, offset) = number;
    return 0;
}
