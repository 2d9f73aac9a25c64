/* The extension module: its types, its functions, and the fork hook. Holds no logic of its own. */
#define TR_MMAP_IMPORTS_NUMPY
#include "endpoint.h"
#include "mirror.h"

#include <pthread.h>

unsigned fork_generation = 0;
static unsigned long main_thread; /* its identifier */

static void forked_in_child(void) {
    fork_generation++;
    main_thread = PyThread_get_thread_ident(); /* Python too makes the thread that forked the main one */
}

int is_main_thread(void) { return PyThread_get_thread_ident() == main_thread; }

/* Ask Python which thread is the main one: this may be another. */
static int find_main_thread(void) {
    PyObject *module = PyImport_ImportModule("threading");
    PyObject *thread = module == NULL ? NULL : PyObject_CallMethod(module, "main_thread", NULL);
    PyObject *number = thread == NULL ? NULL : PyObject_GetAttrString(thread, "ident");
    if (number != NULL) main_thread = PyLong_AsUnsignedLong(number);
    Py_XDECREF(number);
    Py_XDECREF(thread);
    Py_XDECREF(module);
    return PyErr_Occurred() ? -1 : 0;
}

int get_writable_buffer(PyObject *target, Py_buffer *buffer) {
    if (PyObject_GetBuffer(target, buffer, PyBUF_WRITABLE | PyBUF_ND | PyBUF_FORMAT) < 0) return -1;
    if (buffer->format == NULL || strchr(buffer->format, 'O') == NULL) return 0;
    PyBuffer_Release(buffer);
    PyErr_SetString(PyExc_ValueError, "the target holds Python objects, and no bytes may be written over them");
    return -1;
}

int get_word_buffer(PyObject *source, Py_buffer *buffer, Py_ssize_t nbytes) {
    if (get_writable_buffer(source, buffer) < 0) return -1;
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

/* Once in a process: its types and its fork hook are shared by all interpreters, and so would be their objects. */
static int execute(PyObject *module) {
    static int has_hook = 0;
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError, "the extension of tr_mmap works in the main interpreter only");
        return -1;
    }
    if (PyArray_ImportNumPyAPI() < 0 || find_main_thread() < 0) return -1;
    /* The bases of public types before these, and the types that Python never names. */
    PyTypeObject *const others[] = {&EndpointType, &LeaseWordsType, &LoanType, &MappingType, &ViewType};
    for (size_t index = 0; index < sizeof others / sizeof *others; index++)
        if (PyType_Ready(others[index]) < 0) return -1;
    if (add_contents(module) < 0) return -1;
    if (!has_hook && pthread_atfork(NULL, NULL, forked_in_child) != 0) {
        PyErr_NoMemory();
        return -1;
    }
    has_hook = 1;
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)execute},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "tr_mmap.native._native",
    .m_doc = "See tr_mmap.native.",
    .m_size = 0,
    .m_methods = functions,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
