/* The extension module: its types, its functions, and the fork hook. Holds no logic of its own. */
#define TR_MMAP_IMPORTS_NUMPY
#include "endpoint.h"
#include "mirror.h"

#include <pthread.h>

unsigned fork_generation = 0;

static void forked_in_child(void) { fork_generation++; }

int get_word_buffer(PyObject *source, Py_buffer *buffer, Py_ssize_t nbytes) {
    if (PyObject_GetBuffer(source, buffer, PyBUF_WRITABLE) < 0) return -1;
    if (buffer->len < nbytes || (uintptr_t)buffer->buf % sizeof(uint64_t) != 0) {
        PyBuffer_Release(buffer);
        PyErr_Format(PyExc_ValueError, "an aligned buffer of at least %zd bytes is needed", nbytes);
        return -1;
    }
    return 0;
}

PyDoc_STRVAR(drain_doc,
             "drain()\n--\n\nDoes nothing: here views and loans release their leases and holds when freed.");

static PyObject *py_drain(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"copy", (PyCFunction)(void (*)(void))py_copy, METH_FASTCALL, copy_doc},
    {"drain", py_drain, METH_NOARGS, drain_doc},
    {"freeze", py_freeze, METH_O, freeze_doc},
    {"has_as_many_colons", (PyCFunction)(void (*)(void))py_has_as_many_colons, METH_FASTCALL, has_as_many_colons_doc},
    {"loan_of", py_loan_of, METH_O, loan_of_doc},
    {"map_file", py_map_file, METH_VARARGS, map_file_doc},
    {"quick_load", py_quick_load, METH_VARARGS, quick_load_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "tr_mmap.native._native",
    .m_doc = "See tr_mmap.native.",
    .m_size = -1,
    .m_methods = functions,
};

static int add_contents(PyObject *module) {
    PyTypeObject *const public[] = {&ControllerFastPathType, &FreeListsType,    &HeartbeatType,     &LeaseWordsType,
                                    &MessagePageType,        &MirrorType,       &OwnerSegmentType,  &ReaderSegmentType,
                                    &SemaphoreType,          &WorkerFastPathType};
    for (size_t index = 0; index < sizeof public / sizeof *public; index++)
        if (PyModule_AddType(module, public[index]) < 0) return -1;
    PyObject *finished = PyTuple_New(0); /* the counterpart of plain Python's deque; always empty here */
    int code = finished == NULL ? -1 : PyModule_AddObjectRef(module, "finished", finished);
    Py_XDECREF(finished);
    return code;
}

PyMODINIT_FUNC PyInit__native(void) {
    import_array();
    /* The bases of public types before these, and the types that Python never names. */
    PyTypeObject *const others[] = {&EndpointType, &LeaseWordsType, &LoanType, &MappingType, &ViewType};
    for (size_t index = 0; index < sizeof others / sizeof *others; index++)
        if (PyType_Ready(others[index]) < 0) return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL) return NULL;
    if (add_contents(module) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    if (pthread_atfork(NULL, NULL, forked_in_child) != 0) {
        Py_DECREF(module);
        return PyErr_NoMemory();
    }
    return module;
}
