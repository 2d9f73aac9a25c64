/* Torch's tensors over the memory of arrays, and back: by torch's own functions, so that this needs none of its headers
 * and works with every release. */
#include "torch_tensors.h"

/* A text that a program has read or put together is another object than ours. */
static int says(PyObject *text, PyObject *name) {
    return text == name || (text != NULL && PyUnicode_Check(text) && PyUnicode_Compare(text, name) == 0);
}

Framework framework_of(const ModuleState *state, PyObject *name) {
    if (says(name, state->names[NUMPY])) return FRAMEWORK_NUMPY;
    return says(name, state->names[TORCH]) ? FRAMEWORK_TORCH : FRAMEWORKS;
}

const char learn_torch_doc[] =
    "learn_torch(torch, torch_dtype, numpy_dtype, torch_bits, numpy_bits, /)\n--\n\n"
    "Learn how torch's tensors of a dtype cross, which takes the fast path from then on.\n\n"
    "Args:\n"
    "    torch: the module's Tensor, from_numpy, is_inference_mode_enabled and inference_mode, in a tuple.\n"
    "    torch_dtype, numpy_dtype: the dtype in both frameworks.\n"
    "    torch_bits, numpy_bits: the dtype of numbers of that size, as which the elements cross because numpy's own\n"
    "        dtype is none of torch's; None where it is.";

PyObject *py_learn_torch(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
    TorchFacts *facts = &state_of(module)->torch;
    if (count != 5 || !PyTuple_Check(arguments[0]) || PyTuple_GET_SIZE(arguments[0]) != 4 ||
        !PyType_Check(PyTuple_GET_ITEM(arguments[0], 0)) || !PyArray_DescrCheck(arguments[2]) ||
        (arguments[3] == Py_None) != (arguments[4] == Py_None) ||
        (arguments[4] != Py_None && !PyArray_DescrCheck(arguments[4]))) {
        PyErr_SetString(PyExc_TypeError, "learn_torch takes a type and three functions in a tuple, and four dtypes");
        return NULL;
    }
    for (int index = 0; index < facts->count; index++)
        if (facts->dtypes[index].torch == arguments[1]) Py_RETURN_NONE;
    if (facts->count == MAX_TORCH_DTYPES) Py_RETURN_NONE; /* these take the slow path */
    if (facts->tensor_type == NULL) {
        facts->tensor_type = Py_NewRef(PyTuple_GET_ITEM(arguments[0], 0));
        facts->from_numpy = Py_NewRef(PyTuple_GET_ITEM(arguments[0], 1));
        facts->is_inference = Py_NewRef(PyTuple_GET_ITEM(arguments[0], 2));
        facts->inference = Py_NewRef(PyTuple_GET_ITEM(arguments[0], 3));
    }
    int has_bits = arguments[3] != Py_None;
    facts->dtypes[facts->count].torch = Py_NewRef(arguments[1]);
    facts->dtypes[facts->count].numpy = Py_NewRef(arguments[2]);
    facts->dtypes[facts->count].torch_bits = has_bits ? Py_NewRef(arguments[3]) : NULL;
    facts->dtypes[facts->count].numpy_bits = has_bits ? Py_NewRef(arguments[4]) : NULL;
    facts->count++;
    Py_RETURN_NONE;
}

int torch_facts_traverse(const TorchFacts *facts, visitproc visit, void *arg) {
    Py_VISIT(facts->tensor_type);
    Py_VISIT(facts->from_numpy);
    Py_VISIT(facts->is_inference);
    Py_VISIT(facts->inference);
    for (int index = 0; index < facts->count; index++) {
        Py_VISIT(facts->dtypes[index].torch);
        Py_VISIT(facts->dtypes[index].numpy);
        Py_VISIT(facts->dtypes[index].torch_bits);
        Py_VISIT(facts->dtypes[index].numpy_bits);
    }
    return 0;
}

void torch_facts_clear(TorchFacts *facts) {
    Py_CLEAR(facts->tensor_type);
    Py_CLEAR(facts->from_numpy);
    Py_CLEAR(facts->is_inference);
    Py_CLEAR(facts->inference);
    while (facts->count > 0) {
        facts->count--;
        Py_CLEAR(facts->dtypes[facts->count].torch);
        Py_CLEAR(facts->dtypes[facts->count].numpy);
        Py_CLEAR(facts->dtypes[facts->count].torch_bits);
        Py_CLEAR(facts->dtypes[facts->count].numpy_bits);
    }
}

int is_torch_tensor(const ModuleState *state, PyObject *object) {
    return state->torch.tensor_type != NULL && (PyObject *)Py_TYPE(object) == state->torch.tensor_type;
}

/* The place of a dtype of numpy's, or of torch's, in the facts; -1 for none. */
static int place_of_numpy(const TorchFacts *facts, PyArray_Descr *dtype) {
    for (int index = 0; index < facts->count; index++)
        if (facts->dtypes[index].numpy == (PyObject *)dtype) return index;
    return -1;
}

static int place_of_torch(const TorchFacts *facts, PyObject *dtype) {
    for (int index = 0; index < facts->count; index++)
        if (facts->dtypes[index].torch == dtype) return index;
    return -1;
}

/* The array itself, or a view of it of another dtype of that size; takes over the reference to the array. */
static PyObject *array_as(PyObject *array, PyObject *dtype) {
    if (dtype == NULL || array == NULL) return array;
    PyObject *view = PyArray_View((PyArrayObject *)array, (PyArray_Descr *)Py_NewRef(dtype), NULL);
    Py_DECREF(array);
    return view;
}

/* The tensor itself, or a view of it of another dtype of that size; takes over the reference to the tensor. */
static PyObject *tensor_as(const ModuleState *state, PyObject *tensor, PyObject *dtype) {
    if (dtype == NULL || tensor == NULL) return tensor;
    PyObject *view = PyObject_CallMethodOneArg(tensor, state->names[VIEW], dtype);
    Py_DECREF(tensor);
    return view;
}

PyObject *torch_tensor_of(const ModuleState *state, PyObject *array) {
    const TorchFacts *facts = &state->torch;
    int place = place_of_numpy(facts, PyArray_DESCR((PyArrayObject *)array));
    /* numpy's strides without elements are others than torch's */
    if (place < 0 || PyArray_SIZE((PyArrayObject *)array) == 0) {
        Py_DECREF(array);
        return NULL;
    }
    PyObject *torch_bits = facts->dtypes[place].torch_bits;
    array = array_as(array, facts->dtypes[place].numpy_bits);
    PyObject *tensor = array == NULL ? NULL : PyObject_CallOneArg(facts->from_numpy, array);
    Py_XDECREF(array);
    return torch_bits == NULL ? tensor : tensor_as(state, tensor, facts->dtypes[place].torch);
}

/* torch_tensor_of() outside of inference mode, which this thread is in. */
static PyObject *tensor_outside(const ModuleState *state, PyObject *array) {
    PyObject *const *names = state->names;
    PyObject *context = PyObject_CallOneArg(state->torch.inference, Py_False);
    PyObject *entered = context == NULL ? NULL : PyObject_CallMethodNoArgs(context, names[ENTER]);
    if (entered == NULL) {
        Py_XDECREF(context);
        Py_DECREF(array);
        return NULL;
    }
    PyObject *tensor = torch_tensor_of(state, array), *error = PyErr_GetRaisedException();
    PyObject *exit[] = {context, Py_None, Py_None, Py_None};
    PyObject *left = PyObject_VectorcallMethod(names[EXIT], exit, 4, NULL);
    if (left == NULL) Py_CLEAR(tensor);
    if (error != NULL) PyErr_SetRaisedException(error);
    Py_XDECREF(left);
    Py_DECREF(entered);
    Py_DECREF(context);
    return tensor;
}

PyObject *torch_tensor_received(const ModuleState *state, PyObject *array) {
    PyObject *is_inference = PyObject_CallNoArgs(state->torch.is_inference);
    PyObject *tensor = NULL;
    if (is_inference == NULL) Py_DECREF(array);
    else tensor = is_inference == Py_True ? tensor_outside(state, array) : torch_tensor_of(state, array);
    Py_XDECREF(is_inference);
    return tensor;
}

/* A number that a method without arguments returns; UINT64_MAX with an exception. */
static uint64_t number_from(PyObject *object, PyObject *method) {
    PyObject *returned = PyObject_CallMethodNoArgs(object, method);
    uint64_t number = returned == NULL ? UINT64_MAX : PyLong_AsUnsignedLongLong(returned);
    Py_XDECREF(returned);
    return number;
}

/* Where a tensor's storage is; -1 with an exception. */
static int find_storage(const ModuleState *state, PyObject *tensor, uint64_t *address, uint64_t *nbytes) {
    PyObject *storage = PyObject_CallMethodNoArgs(tensor, state->names[UNTYPED_STORAGE]);
    if (storage == NULL) return -1;
    *address = number_from(storage, state->names[STORAGE_ADDRESS]);
    *nbytes = PyErr_Occurred() ? 0 : number_from(storage, state->names[STORAGE_NBYTES]);
    Py_DECREF(storage);
    return PyErr_Occurred() ? -1 : 0;
}

/* The array; NULL with torch's error for every tensor that has no plain memory here, and for one that autograd watches;
 * NULL without one if the dtype is unknown. */
static PyObject *find_array(const ModuleState *state, PyObject *tensor, uint64_t *address) {
    const TorchFacts *facts = &state->torch;
    PyObject *const *names = state->names;
    PyObject *dtype = PyObject_GetAttr(tensor, names[DTYPE]);
    int place = dtype == NULL ? -1 : place_of_torch(facts, dtype);
    Py_XDECREF(dtype);
    if (place < 0) return NULL;
    PyObject *as_bits = tensor_as(state, Py_NewRef(tensor), facts->dtypes[place].torch_bits);
    PyObject *array = as_bits == NULL ? NULL : PyObject_CallMethodNoArgs(as_bits, names[AS_NUMPY]);
    Py_XDECREF(as_bits);
    if (array != NULL && !PyArray_CheckExact(array)) Py_CLEAR(array);
    if (array != NULL && facts->dtypes[place].numpy_bits != NULL) array = array_as(array, facts->dtypes[place].numpy);
    uint64_t first, nbytes;
    if (array == NULL) return NULL;
    /* torch reads whatever is there when a storage was made shorter; the slow path says so. From here on it cannot be
     * made shorter: torch forbids that for the storage of what is an array, too. */
    uint64_t start = (uintptr_t)PyArray_DATA((PyArrayObject *)array);
    uint64_t length = (uint64_t)PyArray_NBYTES((PyArrayObject *)array);
    int is_there = PyArray_IS_C_CONTIGUOUS((PyArrayObject *)array) && find_storage(state, tensor, &first, &nbytes) == 0 &&
                   start >= first && length <= nbytes && start - first <= nbytes - length;
    if (!is_there) Py_CLEAR(array);
    else *address = first;
    return array;
}

/* An array of the numpy dtype of ours over a tensor's memory, which keeps the tensor alive, and the address of its storage;
 * NULL if the slow path is needed, or with an exception. */
static PyObject *array_of_torch_tensor(const ModuleState *state, PyObject *tensor, uint64_t *address) {
    PyObject *watched = PyObject_GetAttr(tensor, state->names[REQUIRES_GRAD]);
    PyObject *plain = watched == Py_True ? PyObject_CallMethodNoArgs(tensor, state->names[DETACH]) : Py_XNewRef(tensor);
    PyObject *array = watched == NULL || plain == NULL ? NULL : find_array(state, plain, address);
    Py_XDECREF(watched);
    Py_XDECREF(plain);
    /* The slow path says what is wrong. Not an interrupt: it is no Exception. */
    if (array == NULL && PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_Exception) &&
        !PyErr_ExceptionMatches(PyExc_MemoryError))
        PyErr_Clear();
    return array;
}

PyObject *array_of_tensor(const ModuleState *state, PyObject *tensor, PyObject *torch_loans) {
    if (PyArray_CheckExact(tensor)) return Py_NewRef(tensor);
    uint64_t address = 0;
    PyObject *array = is_torch_tensor(state, tensor) ? array_of_torch_tensor(state, tensor, &address) : NULL;
    if (array == NULL || PyArray_NBYTES((PyArrayObject *)array) <= WIRE_PRIVATE_COPY_NBYTES ||
        PyDict_GET_SIZE(torch_loans) == 0)
        return array;
    PyObject *key = PyLong_FromUnsignedLongLong(address);
    int is_loan = key == NULL ? -1 : PyDict_Contains(torch_loans, key);
    Py_XDECREF(key);
    if (is_loan != 0) Py_CLEAR(array);
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
