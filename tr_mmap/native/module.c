/* The extension module: its types, its functions, and what they share. */
#include "native.h"

int hold_buffer(PyObject *source, Py_buffer *view, Py_ssize_t nbytes) {
    if (PyObject_GetBuffer(source, view, PyBUF_WRITABLE) < 0) return -1;
    if (view->len < nbytes || (uintptr_t)view->buf % sizeof(uint64_t) != 0) {
        PyBuffer_Release(view);
        PyErr_Format(PyExc_ValueError, "an aligned buffer of at least %zd bytes is needed", nbytes);
        return -1;
    }
    return 0;
}

static PyMethodDef functions[] = {
    {"copy", (PyCFunction)(void (*)(void))copy, METH_FASTCALL, copy_doc},
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
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL) return NULL;
    if (PyModule_AddType(module, &BellType) < 0 || PyModule_AddType(module, &LineType) < 0 ||
        PyModule_AddType(module, &PageType) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
