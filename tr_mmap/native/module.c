/* The extension module: its state, its functions, and the fork hook. Holds no logic of its own. */
#define TR_MMAP_IMPORTS_NUMPY
#include "endpoint.h"
#include "lease_words.h"
#include "mirror.h"
#include "sent_results.h"
#include "torch_tensors.h"
#include "traffic.h"
#include "twin.h"

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
    {"learn_torch", (PyCFunction)(void (*)(void))py_learn_torch, METH_FASTCALL, learn_torch_doc},
    {"loan_of", py_loan_of, METH_O, loan_of_doc},
    {"make_twin", py_make_twin, METH_VARARGS, make_twin_doc},
    {"map_file", py_map_file, METH_VARARGS, map_file_doc},
    {"quick_load", py_quick_load, METH_VARARGS, quick_load_doc},
    {"view_of", py_view_of, METH_O, view_of_doc},
    {"set_member", (PyCFunction)(void (*)(void))py_set_member, METH_FASTCALL, set_member_doc},
    {NULL, NULL, 0, NULL},
};

/* -- the state ---------------------------------------------------------------------------------------------------- */

enum { NO_BASE = offsetof(ModuleState, module) };
#define TYPE(field, base, is_public) {&field##_spec, offsetof(ModuleState, field), base, is_public}

/* The types, each behind its base. Python names the public ones only. */
static const struct {
    PyType_Spec *spec;
    size_t offset, base;
    int is_public;
} types[] = {
    TYPE(endpoint, NO_BASE, 0),
    TYPE(controller_fast_path, offsetof(ModuleState, endpoint), 1),
    TYPE(worker_fast_path, offsetof(ModuleState, endpoint), 1),
    TYPE(lease_words, NO_BASE, 1),
    TYPE(owner_segment, offsetof(ModuleState, lease_words), 1),
    TYPE(reader_segment, offsetof(ModuleState, lease_words), 1),
    TYPE(free_lists, NO_BASE, 1),
    TYPE(heartbeat, NO_BASE, 1),
    TYPE(loan, NO_BASE, 0),
    TYPE(mapping, NO_BASE, 0),
    TYPE(ring, NO_BASE, 1),
    TYPE(mirror, NO_BASE, 1),
    TYPE(semaphore, NO_BASE, 1),
    TYPE(counters, NO_BASE, 1),
    TYPE(pending, NO_BASE, 1),
    TYPE(sent_results, NO_BASE, 1),
    TYPE(turn, NO_BASE, 1),
    TYPE(twin, NO_BASE, 0),
    TYPE(view, NO_BASE, 0),
};

static PyObject **type_at(ModuleState *state, size_t offset) { return (PyObject **)(void *)((char *)state + offset); }

static int add_types(PyObject *module, ModuleState *state) {
    for (size_t index = 0; index < sizeof types / sizeof *types; index++) {
        PyObject *base = types[index].base == NO_BASE ? NULL : *type_at(state, types[index].base);
        PyObject *type = PyType_FromModuleAndSpec(module, types[index].spec, base);
        if (type == NULL) return -1;
        *type_at(state, types[index].offset) = type;
        if (types[index].is_public && PyModule_AddType(module, (PyTypeObject *)type) < 0) return -1;
    }
    return 0;
}

static int intern_names(ModuleState *state) {
    static const char *const texts[ATTRIBUTES] = {"command", "result", "message", "complaint", "form", "reply", "request",
                                                  "main_logic", "named_logic", "parameters", "segment", "seq", WIRE_FORM_NAMED,
                                                  "numpy", "torch", "is_conj", "is_neg", "untyped_storage", "data_ptr", "nbytes", "_cdata", "__enter__", "__exit__"};
    for (int index = 0; index < ATTRIBUTES; index++)
        if ((state->names[index] = PyUnicode_InternFromString(texts[index])) == NULL) return -1;
    return 0;
}

static int traverse_state(PyObject *module, visitproc visit, void *arg) {
    ModuleState *state = state_of(module);
    for (size_t index = 0; state != NULL && index < sizeof types / sizeof *types; index++)
        Py_VISIT(*type_at(state, types[index].offset));
    return state == NULL ? 0 : torch_facts_traverse(&state->torch, visit, arg);
}

/* There is no m_clear: an object keeps the module, and finds the types there to its end. */
static void free_state(void *module) {
    ModuleState *state = state_of(module);
    if (state == NULL) return;
    for (size_t index = 0; index < sizeof types / sizeof *types; index++)
        Py_CLEAR(*type_at(state, types[index].offset));
    for (int index = 0; index < ATTRIBUTES; index++) Py_CLEAR(state->names[index]);
    torch_facts_clear(&state->torch);
}

/* -- the module --------------------------------------------------------------------------------------------------- */

static int add_finished(PyObject *module) {
    PyObject *finished = PyTuple_New(0); /* the counterpart of plain Python's deque; always empty here */
    int code = finished == NULL ? -1 : PyModule_AddObjectRef(module, "finished", finished);
    Py_XDECREF(finished);
    return code;
}

/* In the main interpreter only: numpy works in no other, and fork_generation and main_thread are the process's. */
static int execute(PyObject *module) {
    static int has_hook = 0;
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError, "the extension of tr_mmap works in the main interpreter only");
        return -1;
    }
    ModuleState *state = state_of(module);
    state->module = module;
    crc_prepare();
    if (PyArray_ImportNumPyAPI() < 0 || find_main_thread() < 0) return -1;
    if (add_types(module, state) < 0 || intern_names(state) < 0 || add_finished(module) < 0) return -1;
    if (!has_hook && pthread_atfork(NULL, NULL, forked_in_child) != 0) {
        PyErr_NoMemory();
        return -1;
    }
    has_hook = 1;
    return 0;
}

/* A build of Python without the interpreter's lock takes the lock when it imports this. To do without it, these need
 * locks of their own, because one thread changes them while another reads them: the counts and lists of segments and
 * free lists (owner_segment.c, reader_segment.c, and free_lists.c, which shortens lists in place), what a page has seen
 * and taken (ring.c), the descriptor of a mirror (mirror.c). Borrowed items of lists and dicts must be held, too. */
static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)execute},
    MAIN_INTERPRETER_ONLY
    WITH_THE_LOCK
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "tr_mmap.native._native",
    .m_doc = "See tr_mmap.native.",
    .m_size = sizeof(ModuleState),
    .m_methods = functions,
    .m_slots = slots,
    .m_traverse = traverse_state,
    .m_free = free_state,
};

PyObject *stateful_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    (void)arguments, (void)keywords;
    PyObject *module = PyType_GetModuleByDef(type, &definition);
    PyObject *self = module == NULL ? NULL : type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    ((StatefulObject *)self)->state = state_of(Py_NewRef(module));
    return self;
}

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
