/* The extension module: its types, its functions, and what they share. */
#define TR_MMAP_IMPORTS_NUMPY
#include "end.h"

#include <pthread.h>

int hold_buffer(PyObject *source, Py_buffer *view, Py_ssize_t nbytes) {
    if (PyObject_GetBuffer(source, view, PyBUF_WRITABLE) < 0) return -1;
    if (view->len < nbytes || (uintptr_t)view->buf % sizeof(uint64_t) != 0) {
        PyBuffer_Release(view);
        PyErr_Format(PyExc_ValueError, "an aligned buffer of at least %zd bytes is needed", nbytes);
        return -1;
    }
    return 0;
}

PyDoc_STRVAR(bury_doc, "bury()\n--\n\nNothing: here views and loans see to their own ends.");

static PyObject *bury(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"bury", (PyCFunction)bury, METH_NOARGS, bury_doc},
    {"copy", (PyCFunction)(void (*)(void))copy, METH_FASTCALL, copy_doc},
    {"has_as_many_colons", (PyCFunction)(void (*)(void))has_as_many_colons, METH_FASTCALL, has_as_many_colons_doc},
    {"loan_of", (PyCFunction)loan_of, METH_O, loan_of_doc},
    {"map_file", map_file, METH_VARARGS, map_file_doc},
    {"open_usual", open_usual, METH_VARARGS, open_usual_doc},
    {"seal", (PyCFunction)seal, METH_O, seal_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "tr_mmap.native._native",
    .m_doc = "See tr_mmap.native.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__native(void) {
    import_array();
    PyTypeObject *const public[] = {&AnswererType, &AskerType, &BellType, &LeasedType,
                                    &LineType, &OwnedType, &PageType, &ShelvesType};
    if (PyType_Ready(&EndType) < 0 || PyType_Ready(&LineType) < 0 || PyType_Ready(&HoldType) < 0 || PyType_Ready(&LoanType) < 0 ||
        PyType_Ready(&MappingType) < 0) return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL) return NULL;
    for (size_t index = 0; index < sizeof public / sizeof *public; index++) {
        if (PyModule_AddType(module, public[index]) < 0) {
            Py_DECREF(module);
            return NULL;
        }
    }
    PyObject *dead = PyTuple_New(0);
    if (dead == NULL || PyModule_AddObjectRef(module, "dead", dead) < 0) {
        Py_XDECREF(dead);
        Py_DECREF(module);
        return NULL;
    }
    Py_DECREF(dead);
    if (pthread_atfork(NULL, NULL, forked_in_child) != 0) {
        Py_DECREF(module);
        return PyErr_NoMemory();
    }
    return module;
}
