/* Lets numpy allocate large arrays in the area for outputs, inside a contained process, so that results need no copy.
 *
 * Small arrays, and those for which there is no room, come from malloc. The host does not trust this code: the algorithm
 * can change all memory of its process. The area has few blocks, so a sorted table of them is enough. */
#include "../native/compat.h"

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#define NPY_TARGET_VERSION NPY_1_22_API_VERSION
#include <numpy/arrayobject.h>

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { MAX_BLOCKS = 64, MAX_FORMER = 64, PAGE = 4096, LEAST = 1 << 18, POPULATE_READ = 22 };

static struct {
    size_t start, end;
} blocks[MAX_BLOCKS]; /* in use, sorted by their start */
static int count;
static char *area;
static size_t area_nbytes, mapped_nbytes; /* the area's size; how much of it, from its start, has page tables */
static struct {
    char *start;
    size_t nbytes;
} former[MAX_FORMER]; /* areas of former runs: arrays may still lie there */
static int former_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Fills the page tables up to an offset: one call costs less than a fault for each page. POPULATE_READ is enough, because
 * the kernel tracks no stores into memory without a file. It costs a third of POPULATE_WRITE, because each fault maps
 * the neighbouring pages too. */
static void map_until(size_t end) {
    if (end <= mapped_nbytes) return;
    madvise(area + mapped_nbytes, (end - mapped_nbytes + PAGE - 1) / PAGE * PAGE, POPULATE_READ);
    mapped_nbytes = (end + PAGE - 1) / PAGE * PAGE;
}

/* Takes the first gap that is large enough; returns its offset, SIZE_MAX if there is none. */
static size_t place(size_t nbytes) {
    if (area == NULL || nbytes > area_nbytes) return SIZE_MAX;
    size_t wanted = (nbytes + PAGE - 1) / PAGE * PAGE, start = 0;
    pthread_mutex_lock(&lock);
    int index = 0;
    while (index < count && blocks[index].start - start < wanted) start = blocks[index++].end;
    if (count == MAX_BLOCKS || start > area_nbytes || area_nbytes - start < wanted)
        start = SIZE_MAX;
    else {
        memmove(&blocks[index + 1], &blocks[index], sizeof *blocks * (size_t)(count - index));
        blocks[index].start = start, blocks[index].end = start + wanted;
        count++;
        map_until(start + wanted);
    }
    pthread_mutex_unlock(&lock);
    return start;
}

static void remove_block(int index) {
    memmove(&blocks[index], &blocks[index + 1], sizeof *blocks * (size_t)(count - index - 1));
    count--;
}

/* Frees a block; returns its size, 0 if the address lies in no area. */
static size_t release(const char *address) {
    size_t nbytes = 0;
    pthread_mutex_lock(&lock);
    if (area != NULL && address >= area && address < area + area_nbytes) {
        nbytes = 1;
        for (int index = 0; index < count; index++)
            if (area + blocks[index].start == address) {
                nbytes = blocks[index].end - blocks[index].start;
                remove_block(index);
                break;
            }
    }
    for (int index = 0; nbytes == 0 && index < former_count; index++)
        if (address >= former[index].start && address < former[index].start + former[index].nbytes) nbytes = 1;
    pthread_mutex_unlock(&lock);
    return nbytes;
}

static void *arena_malloc(void *Py_UNUSED(context), size_t nbytes) {
    size_t offset = nbytes < LEAST ? SIZE_MAX : place(nbytes);
    return offset == SIZE_MAX ? malloc(nbytes == 0 ? 1 : nbytes) : area + offset;
}

static void *arena_calloc(void *context, size_t items, size_t item_nbytes) {
    if (item_nbytes != 0 && items > SIZE_MAX / item_nbytes) return NULL;
    size_t nbytes = items * item_nbytes;
    if (nbytes < LEAST) return calloc(items == 0 ? 1 : items, item_nbytes == 0 ? 1 : item_nbytes);
    void *memory = arena_malloc(context, nbytes);
    return memory == NULL ? NULL : memset(memory, 0, nbytes);
}

static void arena_free(void *Py_UNUSED(context), void *memory, size_t Py_UNUSED(nbytes)) {
    if (memory != NULL && release(memory) == 0) free(memory);
}

static size_t nbytes_in_area(const char *address) {
    size_t nbytes = 0;
    pthread_mutex_lock(&lock);
    for (int index = 0; area != NULL && index < count; index++)
        if (area + blocks[index].start == address) nbytes = blocks[index].end - blocks[index].start;
    for (int index = 0; nbytes == 0 && index < former_count; index++) /* the block's size is not known: up to the end */
        if (address >= former[index].start && address < former[index].start + former[index].nbytes)
            nbytes = (size_t)(former[index].start + former[index].nbytes - address);
    pthread_mutex_unlock(&lock);
    return nbytes;
}

static void *arena_realloc(void *context, void *memory, size_t nbytes) {
    size_t before = memory == NULL ? 0 : nbytes_in_area(memory);
    if (before == 0) return realloc(memory, nbytes == 0 ? 1 : nbytes);
    void *moved = arena_malloc(context, nbytes);
    if (moved == NULL) return NULL;
    memcpy(moved, memory, before < nbytes ? before : nbytes);
    arena_free(context, memory, before);
    return moved;
}

static PyDataMem_Handler handler = {
    "tr_mmap", 1, {NULL, arena_malloc, arena_calloc, arena_realloc, arena_free},
};

PyDoc_STRVAR(use_doc, "use(fd, start, nbytes)\n--\n\nAllocate in a part of a descriptor's area from now on.\n"
                      "An `fd` of -1 keeps the area of the last run.\n\nRaises:\n    OSError: it cannot be mapped.");

static PyObject *use(PyObject *Py_UNUSED(module), PyObject *arguments) {
    int fd;
    Py_ssize_t start, nbytes;
    if (!PyArg_ParseTuple(arguments, "inn", &fd, &start, &nbytes)) return NULL;
    pthread_mutex_lock(&lock);
    if (fd >= 0) {
        char *memory = mmap(NULL, (size_t)nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, start);
        if (memory == MAP_FAILED || (area != NULL && former_count == MAX_FORMER)) {
            pthread_mutex_unlock(&lock);
            return PyErr_SetFromErrno(PyExc_OSError);
        }
        if (area != NULL) former[former_count].start = area, former[former_count++].nbytes = area_nbytes;
        area = memory, area_nbytes = (size_t)nbytes, mapped_nbytes = 0, count = 0;
    }
    pthread_mutex_unlock(&lock);
    PyObject *capsule = PyCapsule_New(&handler, "mem_handler", NULL);
    if (capsule == NULL) return NULL;
    PyObject *before = PyDataMem_SetHandler(capsule);
    Py_DECREF(capsule);
    if (before == NULL) return NULL;
    Py_DECREF(before);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(offset_of_doc, "offset_of(address, nbytes)\n--\n\nWhere in that part so many bytes lie; -1 if elsewhere.");

static PyObject *offset_of(PyObject *Py_UNUSED(module), PyObject *arguments) {
    unsigned long long address, nbytes;
    if (!PyArg_ParseTuple(arguments, "KK", &address, &nbytes)) return NULL;
    uintptr_t start = (uintptr_t)area;
    if (area == NULL || address < start || nbytes > area_nbytes || address - start > area_nbytes - nbytes)
        return PyLong_FromLong(-1);
    return PyLong_FromSize_t(address - start);
}

PyDoc_STRVAR(clear_doc, "clear(start, end)\n--\n\nMake a range of that part zeros. Nothing is allocated there yet.");

static PyObject *clear(PyObject *Py_UNUSED(module), PyObject *arguments) {
    Py_ssize_t start, end;
    if (!PyArg_ParseTuple(arguments, "nn", &start, &end)) return NULL;
    if (area == NULL || start < 0 || start > end || (size_t)end > area_nbytes) {
        PyErr_SetString(PyExc_ValueError, "it is not in the area");
        return NULL;
    }
    map_until((size_t)end);
    memset(area + start, 0, (size_t)(end - start));
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"use", use, METH_VARARGS, use_doc},
    {"offset_of", offset_of, METH_VARARGS, offset_of_doc},
    {"clear", clear, METH_VARARGS, clear_doc},
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject *Py_UNUSED(module)) { return PyArray_ImportNumPyAPI(); }

/* The area belongs to the process, as malloc's memory does; so the module has no state of its own. */
static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)execute},
    MAIN_INTERPRETER_ONLY
    WITH_THE_LOCK
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "tr_mmap.sandbox._arena",
    .m_doc = "Memory of numpy's arrays in the area for outputs.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__arena(void) { return PyModuleDef_Init(&definition); }
