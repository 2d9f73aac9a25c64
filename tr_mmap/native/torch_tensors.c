/* Torch's tensors over the memory of arrays, and back: as DLPack has it, so that this needs no headers of torch's. */
#include "torch_tensors.h"

#include <stdlib.h>
#include <string.h>

/* A text that a program has read or put together is another object than ours. */
static int says(PyObject *text, PyObject *name) {
    return text == name || (text != NULL && PyUnicode_Check(text) && PyUnicode_Compare(text, name) == 0);
}

Framework framework_of(const ModuleState *state, PyObject *name) {
    if (says(name, state->names[NUMPY])) return FRAMEWORK_NUMPY;
    return says(name, state->names[TORCH]) ? FRAMEWORK_TORCH : FRAMEWORKS;
}

/* The place of a dtype of numpy's, or of torch's, in the facts; -1 for none. */
static int place_of_numpy(const TorchFacts *facts, PyArray_Descr *dtype) {
    for (int index = 0; index < facts->count; index++)
        if (facts->dtypes[index].numpy == (PyObject *)dtype) return index;
    return -1;
}

static int place_of_torch(const TorchFacts *facts, DLDataType dtype) {
    for (int index = 0; index < facts->count; index++)
        if (memcmp(&facts->dtypes[index].torch, &dtype, sizeof dtype) == 0) return index;
    return -1;
}

const char learn_torch_doc[] =
    "learn_torch(torch, kind, numpy_dtype, /)\n--\n\n"
    "Learn how torch's tensors of a dtype cross, which takes the fast path from then on.\n\n"
    "Args:\n"
    "    torch: the module's Tensor, nn.Parameter, Size, Tensor.__dlpack_c_exchange_api__, is_inference_mode_enabled and\n"
    "        inference_mode, in a tuple.\n"
    "    kind: DLPack's code for the elements' kind.\n"
    "    numpy_dtype: the dtype in numpy.";

PyObject *py_learn_torch(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
    TorchFacts *facts = &state_of(module)->torch;
    PyObject *torch[6];
    if (count != 3 || !PyTuple_Check(arguments[0]) || PyTuple_GET_SIZE(arguments[0]) != 6 ||
        !PyLong_Check(arguments[1]) || !PyArray_DescrCheck(arguments[2])) {
        PyErr_SetString(PyExc_TypeError, "learn_torch takes what torch has in a tuple, a number and a dtype");
        return NULL;
    }
    for (int index = 0; index < 6; index++) torch[index] = PyTuple_GET_ITEM(arguments[0], index);
    const DLPackExchange *exchange = PyCapsule_GetPointer(torch[3], "dlpack_exchange_api");
    long kind = PyLong_AsLong(arguments[1]);
    npy_intp nbits = 8 * PyDataType_ELSIZE((PyArray_Descr *)arguments[2]);
    if (exchange == NULL || (kind == -1 && PyErr_Occurred())) return NULL;
    if (kind < 0 || kind > UINT8_MAX || nbits > UINT8_MAX) {
        PyErr_SetString(PyExc_ValueError, "DLPack has no such elements");
        return NULL;
    }
    DLDataType dtype = {(uint8_t)kind, (uint8_t)nbits, 1};
    /* its tensors take the slow path */
    if (exchange->version.major != DLPACK_MAJOR || facts->count == MAX_TORCH_DTYPES || place_of_torch(facts, dtype) >= 0)
        Py_RETURN_NONE;
    if (facts->tensor_type == NULL) {
        facts->tensor_type = Py_NewRef(torch[0]);
        facts->parameter_type = Py_NewRef(torch[1]);
        facts->exchange = exchange;
        facts->size_type = Py_NewRef(torch[2]);
        facts->is_inference = Py_NewRef(torch[4]);
        facts->inference = Py_NewRef(torch[5]);
    }
    facts->dtypes[facts->count].torch = dtype;
    facts->dtypes[facts->count].numpy = Py_NewRef(arguments[2]);
    facts->count++;
    Py_RETURN_NONE;
}

int torch_facts_traverse(const TorchFacts *facts, visitproc visit, void *arg) {
    Py_VISIT(facts->tensor_type);
    Py_VISIT(facts->parameter_type);
    Py_VISIT(facts->size_type);
    Py_VISIT(facts->is_inference);
    Py_VISIT(facts->inference);
    for (int index = 0; index < facts->count; index++) Py_VISIT(facts->dtypes[index].numpy);
    return 0;
}

void torch_facts_clear(TorchFacts *facts) {
    Py_CLEAR(facts->tensor_type);
    Py_CLEAR(facts->parameter_type);
    Py_CLEAR(facts->size_type);
    Py_CLEAR(facts->is_inference);
    Py_CLEAR(facts->inference);
    while (facts->count > 0) Py_CLEAR(facts->dtypes[--facts->count].numpy);
}

int is_torch_tensor(const ModuleState *state, PyObject *object) {
    const TorchFacts *facts = &state->torch;
    PyObject *type = (PyObject *)Py_TYPE(object);
    return facts->tensor_type != NULL && (type == facts->tensor_type || type == facts->parameter_type);
}

/* A tensor's memory, as DLPack has it: an array's, or, in one piece with this, of its own. */
typedef struct {
    DLManagedTensorVersioned managed;
    int64_t dims[2 * WIRE_MAX_NDIM]; /* the shape, then the strides */
    _Alignas(64) char own[]; /* aligned as torch's own */
} Memory;

/* Any thread calls these, with Python's lock or without. */
static void let_go_of_array(DLManagedTensorVersioned *managed) {
    if (Py_IsInitialized()) {
        PyGILState_STATE lock = PyGILState_Ensure();
        Py_DECREF((PyObject *)managed->manager_ctx);
        PyGILState_Release(lock);
    }
    free(managed);
}

static void free_own(DLManagedTensorVersioned *managed) { free(managed); }

/* The memory of an array that is not empty, or a copy of it. It is the caller's to release. NULL with an exception. */
static DLManagedTensorVersioned *memory_of(PyArrayObject *array, DLDataType dtype, int is_copy) {
    size_t nbytes = is_copy ? (size_t)PyArray_NBYTES(array) : 0;
    Memory *memory = NULL;
    if (posix_memalign((void **)&memory, _Alignof(Memory), sizeof *memory + nbytes) != 0) {
        PyErr_NoMemory();
        return NULL;
    }
    int ndim = PyArray_NDIM(array);
    for (int axis = 0; axis < ndim; axis++) {
        memory->dims[axis] = PyArray_DIM(array, axis);
        memory->dims[ndim + axis] = PyArray_STRIDE(array, axis) / PyArray_ITEMSIZE(array);
    }
    if (is_copy) memcpy(memory->own, PyArray_DATA(array), nbytes);
    else Py_INCREF(array);
    memory->managed = (DLManagedTensorVersioned){
        .version.major = DLPACK_MAJOR,
        .manager_ctx = array,
        .deleter = is_copy ? free_own : let_go_of_array,
        .dl_tensor = {
            .data = is_copy ? memory->own : PyArray_DATA(array),
            .device.type = DLPACK_CPU,
            .ndim = ndim,
            .dtype = dtype,
            .shape = memory->dims,
            .strides = memory->dims + ndim,
        },
    };
    return &memory->managed;
}

static PyObject *tensor_over(const ModuleState *state, PyObject *array, int is_copy) {
    const TorchFacts *facts = &state->torch;
    int place = place_of_numpy(facts, PyArray_DESCR((PyArrayObject *)array));
    /* numpy's strides without elements are others than torch's */
    if (place < 0 || PyArray_SIZE((PyArrayObject *)array) == 0) return NULL;
    DLManagedTensorVersioned *managed = memory_of((PyArrayObject *)array, facts->dtypes[place].torch, is_copy);
    void *tensor = NULL; /* should torch fail, then it may have released the memory or not: it stays */
    return managed != NULL && facts->exchange->managed_to_object(managed, &tensor) == 0 ? tensor : NULL;
}

PyObject *torch_tensor_of(const ModuleState *state, PyObject *array) {
    PyObject *tensor = tensor_over(state, array, 0);
    Py_DECREF(array);
    return tensor;
}

/* tensor_over() outside of inference mode, which this thread is in. */
static PyObject *tensor_outside(const ModuleState *state, PyObject *array, int is_copy) {
    PyObject *const *names = state->names;
    PyObject *context = PyObject_CallOneArg(state->torch.inference, Py_False);
    PyObject *entered = context == NULL ? NULL : PyObject_CallMethodNoArgs(context, names[ENTER]);
    if (entered == NULL) {
        Py_XDECREF(context);
        return NULL;
    }
    PyObject *tensor = tensor_over(state, array, is_copy), *error = PyErr_GetRaisedException();
    PyObject *exit[] = {context, Py_None, Py_None, Py_None};
    PyObject *left = PyObject_VectorcallMethod(names[EXIT], exit, 4, NULL);
    if (left == NULL) Py_CLEAR(tensor);
    if (error != NULL) PyErr_SetRaisedException(error);
    Py_XDECREF(left);
    Py_DECREF(entered);
    Py_DECREF(context);
    return tensor;
}

PyObject *torch_tensor_received(const ModuleState *state, PyObject *array, int is_copy) {
    PyObject *is_inference = PyObject_CallNoArgs(state->torch.is_inference);
    PyObject *tensor = NULL;
    if (is_inference != NULL)
        tensor = is_inference == Py_True ? tensor_outside(state, array, is_copy) : tensor_over(state, array, is_copy);
    Py_XDECREF(is_inference);
    Py_DECREF(array);
    return tensor;
}

/* A number that a method without arguments returns; UINT64_MAX with an exception. */
static uint64_t number_from(PyObject *object, PyObject *method) {
    PyObject *returned = PyObject_CallMethodNoArgs(object, method);
    uint64_t number = returned == NULL ? UINT64_MAX : PyLong_AsUnsignedLongLong(returned);
    Py_XDECREF(returned);
    return number;
}

/* Whether a method without arguments returns True; -1 with an exception. */
static int is_so(PyObject *object, PyObject *method) {
    PyObject *returned = PyObject_CallMethodNoArgs(object, method);
    int is_true = returned == NULL ? -1 : returned == Py_True;
    Py_XDECREF(returned);
    return is_true;
}

/* Whether the elements are others than those that lie in memory, as long as nobody asks for them. -1 with an exception. */
static int is_lazy(const ModuleState *state, PyObject *tensor, DLDataType dtype) {
    int is_neg = is_so(tensor, state->names[IS_NEG]);
    return is_neg != 0 || dtype.code != DLPACK_COMPLEX ? is_neg : is_so(tensor, state->names[IS_CONJ]);
}

/* The bytes of a tensor that lies in the memory of this process without gaps, in row-major order; -1 if it does not. */
static int64_t contiguous_nbytes(const DLTensor *seen) {
    int64_t count = 1;
    if (seen->device.type != DLPACK_CPU || seen->ndim > WIRE_MAX_NDIM || seen->data == NULL) return -1;
    for (int axis = seen->ndim - 1; axis >= 0; axis--) {
        if (seen->shape[axis] != 1 && seen->strides[axis] != count) return -1;
        if (__builtin_mul_overflow(count, seen->shape[axis], &count)) return -1;
    }
    return __builtin_mul_overflow(count, seen->dtype.bits / 8, &count) ? -1 : count;
}

/* The array that a loan's storage keeps; NULL if it is none, or with an exception. The loan may have ended, and the address
 * be another's by now. */
static PyObject *root_of_loan(const ModuleState *state, PyObject *torch_loans, PyObject *storage, uint64_t address) {
    PyObject *key = PyLong_FromUnsignedLongLong(address);
    PyObject *noted = key == NULL ? NULL : Py_XNewRef(PyDict_GetItemWithError(torch_loans, key)), *root = NULL;
    Py_XDECREF(key);
    PyObject *identity = noted == NULL ? NULL : PyObject_GetAttr(storage, state->names[STORAGE_IDENTITY]);
    if (identity != NULL && PyTuple_CheckExact(noted) && PyTuple_GET_SIZE(noted) == 2 &&
        PyObject_RichCompareBool(identity, PyTuple_GET_ITEM(noted, 0), Py_EQ) == 1 &&
        PyWeakref_Check(PyTuple_GET_ITEM(noted, 1)))
        PyWeakref_GetRef(PyTuple_GET_ITEM(noted, 1), &root);
    Py_XDECREF(identity);
    Py_XDECREF(noted);
    return root;
}

/* An array over what torch shows. It keeps the storage alive, because the tensor may get another one at any time; that of a
 * large loan is a view of the loan's. NULL if it is not in the storage, which may have been made shorter: torch reads
 * whatever is there, and the slow path says so. */
static PyObject *array_in_storage(const ModuleState *state, PyObject *tensor, PyObject *storage, PyObject *torch_loans) {
    const TorchFacts *facts = &state->torch;
    uint64_t first = number_from(storage, state->names[STORAGE_ADDRESS]);
    uint64_t nbytes = PyErr_Occurred() ? 0 : number_from(storage, state->names[STORAGE_NBYTES]);
    DLTensor seen;
    if (PyErr_Occurred() || facts->exchange->look_at_object(tensor, &seen) != 0) return NULL;
    int place = place_of_torch(facts, seen.dtype);
    int64_t length = place < 0 ? -1 : contiguous_nbytes(&seen);
    uint64_t start = (uintptr_t)seen.data + seen.byte_offset;
    if (length <= 0 || start < first || (uint64_t)length > nbytes || start - first > nbytes - (uint64_t)length) return NULL;
    npy_intp dims[WIRE_MAX_NDIM];
    for (int axis = 0; axis < seen.ndim; axis++) dims[axis] = seen.shape[axis];
    DLDataType dtype = seen.dtype; /* of all else torch may show something new from here on */
    PyObject *array = PyArray_NewFromDescr(&PyArray_Type, (PyArray_Descr *)Py_NewRef(facts->dtypes[place].numpy), seen.ndim,
                                           dims, NULL, (void *)(uintptr_t)start, NPY_ARRAY_CARRAY, NULL);
    if (array == NULL) return NULL;
    int is_loan = length > WIRE_PRIVATE_COPY_NBYTES && PyDict_GET_SIZE(torch_loans) > 0; /* perhaps */
    PyObject *root = is_loan ? root_of_loan(state, torch_loans, storage, first) : NULL;
    if (PyErr_Occurred() || PyArray_SetBaseObject((PyArrayObject *)array, root != NULL ? root : Py_NewRef(storage)) < 0 ||
        is_lazy(state, tensor, dtype) != 0)
        Py_CLEAR(array);
    return array;
}

PyObject *array_of_tensor(const ModuleState *state, PyObject *tensor, PyObject *torch_loans) {
    if (PyArray_CheckExact(tensor)) return Py_NewRef(tensor);
    if (!is_torch_tensor(state, tensor)) return NULL;
    PyObject *storage = PyObject_CallMethodNoArgs(tensor, state->names[UNTYPED_STORAGE]);
    PyObject *array = storage == NULL ? NULL : array_in_storage(state, tensor, storage, torch_loans);
    Py_XDECREF(storage);
    /* The slow path says what is wrong. Not an interrupt: it is no Exception. */
    if (array == NULL && PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_Exception) &&
        !PyErr_ExceptionMatches(PyExc_MemoryError))
        PyErr_Clear();
    return array;
}

PyObject *arrays_of_tensors(const ModuleState *state, PyObject *tensors, PyObject *torch_loans) {
    Py_ssize_t count = PyTuple_GET_SIZE(tensors), index = 0;
    while (index < count && PyArray_CheckExact(PyTuple_GET_ITEM(tensors, index))) index++;
    if (index == count) return Py_NewRef(tensors);
    PyObject *arrays = PyTuple_New(count);
    for (index = 0; arrays != NULL && index < count; index++) {
        PyObject *array = array_of_tensor(state, PyTuple_GET_ITEM(tensors, index), torch_loans);
        if (array == NULL) Py_CLEAR(arrays);
        else PyTuple_SET_ITEM(arrays, index, array);
    }
    return arrays;
}

/* What tells a tensor's storage from all others that live; NULL with an exception. */
static PyObject *storage_identity(const ModuleState *state, PyObject *tensor) {
    PyObject *storage = PyObject_CallMethodNoArgs(tensor, state->names[UNTYPED_STORAGE]);
    PyObject *identity = storage == NULL ? NULL : PyObject_GetAttr(storage, state->names[STORAGE_IDENTITY]);
    Py_XDECREF(storage);
    return identity;
}

int note_torch_loan(const ModuleState *state, PyObject *torch_loans, const void *address, PyObject *tensor, PyObject *root) {
    PyObject *key = PyLong_FromVoidPtr((void *)address), *identity = key == NULL ? NULL : storage_identity(state, tensor);
    PyObject *weak = identity == NULL ? NULL : PyWeakref_NewRef(root, NULL);
    PyObject *noted = weak == NULL ? NULL : PyTuple_Pack(2, identity, weak);
    int code = noted == NULL ? -1 : PyDict_SetItem(torch_loans, key, noted);
    Py_XDECREF(noted);
    Py_XDECREF(weak);
    Py_XDECREF(identity);
    Py_XDECREF(key);
    return code;
}
