/* What one module object keeps: its types, and the names of attributes that it reads. No type is a global variable, and
 * none is static: so a module can be made again, and a build without the interpreter's lock can count references to
 * types as it counts others. What is left to do for such a build stands in module.c. */
#ifndef TR_MMAP_STATE_H
#define TR_MMAP_STATE_H

#include "compat.h"
#include "dlpack.h"

/* The attributes of Python's objects that are used here; first those of a reply. */
enum {
    COMMAND,    /* what the handler calls the command; "" to use the request's */
    RESULT,     /* the text; None where the handler has said nothing */
    MESSAGE,    /* the handler's remark */
    COMPLAINT,  /* a remark of ours, unless the handler makes one */
    FORM,       /* of the text; "" or NAMED */
    REPLY,      /* of a request context: the reply to the request at hand */
    REQUEST,    /* of a request context: that request */
    MAIN_LOGIC, /* of a request context */
    NAMED_LOGIC, /* of a request context: for arguments by name */
    PARAMETERS, /* of a request */
    SEGMENT,    /* of a ref */
    SEQ,        /* of a ref */
    NAMED,      /* the form of values by name */
    NUMPY,      /* the framework of numpy's arrays */
    TORCH,      /* that of torch's tensors */
    IS_CONJ,    /* of a tensor, as the names that follow */
    IS_NEG,
    UNTYPED_STORAGE,
    STORAGE_ADDRESS, /* of a storage */
    STORAGE_NBYTES,
    STORAGE_IDENTITY,
    ENTER, /* of a context manager */
    EXIT,
    ATTRIBUTES,
};
enum { REPLY_ATTRIBUTES = REPLY };

enum { MAX_TORCH_DTYPES = 32 }; /* more than the table of dtypes has */

/* What Python has told of torch. */
typedef struct {
    PyObject *tensor_type, *parameter_type; /* NULL before it has */
    PyObject *size_type;                    /* a tuple of a shape */
    PyObject *is_inference, *inference;     /* functions that tell of, and that set, inference mode */
    const DLPackExchange *exchange;         /* the tensor type keeps it */
    struct {
        DLDataType torch;
        PyObject *numpy;
    } dtypes[MAX_TORCH_DTYPES]; /* the same one in both frameworks */
    int count;
} TorchFacts;

typedef struct {
    PyObject *module; /* whose state this is; borrowed */
    PyTypeObject *controller_fast_path, *counters, *endpoint, *free_lists, *heartbeat, *lease_words, *loan, *mapping, *ring,
        *mirror, *owner_segment, *pending, *reader_segment, *semaphore,
        *sent_results, *turn, *twin, *view, *worker_fast_path;
    PyObject *names[ATTRIBUTES];
    TorchFacts torch;
} ModuleState;

/* The types whose code needs the module's state begin with this: to look it up at each call would take longer. */
#define STATEFUL_HEAD \
    PyObject_HEAD \
    ModuleState *state; /* its module is kept by the object */

typedef struct {
    STATEFUL_HEAD
} StatefulObject;

/* tp_new of these types; all that follows the head is zero. */
PyObject *stateful_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords);

/* The last steps of tp_dealloc: free an object's memory, and release its type. */
static inline void free_object(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

/* The same for those that begin with STATEFUL_HEAD. */
static inline void stateful_free(PyObject *self) {
    PyObject *module = ((StatefulObject *)self)->state->module;
    free_object(self);
    Py_DECREF(module);
}

/* For tp_traverse of those that begin with STATEFUL_HEAD and that the garbage collector knows. */
#define VISIT_TYPE_AND_MODULE(self) \
    do { \
        Py_VISIT(Py_TYPE(self)); \
        Py_VISIT(((StatefulObject *)(self))->state->module); \
    } while (0)

/* Most types: they cannot be changed from Python, as static types cannot. */
#define TYPE_FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE)

static inline ModuleState *state_of(PyObject *module) { return PyModule_GetState(module); }

#endif
