/* The short cut of load(): open, check and map a file of the native layout that is as most are. Every check here is one of
 * tsr/header.py; what fails any of them goes the long way, which says what is wrong. */
#include "line.h"

#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HEADER_NBYTES = 256, MOST_DIMS = 16, FLAG_CHECKSUM = 1, PAYLOAD_ALIGNMENT = 256 };

typedef struct {
    char magic[4];
    int32_t version, header_nbytes;
    uint32_t flags;
    int32_t code, ndim;
    uint64_t payload_nbytes, count, created_ns, payload_checksum;
    uint32_t payload_offset, checksum;
    Words live;
    int64_t dims[MOST_DIMS];
} Header;

_Static_assert(sizeof(Header) == HEADER_NBYTES, "as the docstring of tr_mmap.tsr has it");

static uint32_t crc_add(uint32_t crc, const void *data, size_t nbytes) {
    static uint32_t table[256]; /* that of zlib and PNG */
    if (table[1] == 0)
        for (uint32_t index = 0; index < 256; index++) {
            uint32_t value = index;
            for (int bit = 0; bit < 8; bit++) value = value & 1 ? value >> 1 ^ 0xEDB88320u : value >> 1;
            table[index] = value;
        }
    const unsigned char *bytes = data;
    crc = ~crc;
    while (nbytes-- > 0) crc = table[(crc ^ *bytes++) & 0xFF] ^ crc >> 8;
    return ~crc;
}

static int is_right(const Header *header, uint64_t file_nbytes, const unsigned char *itemsizes, Py_ssize_t codes) {
    const Words *live = &header->live;
    if (memcmp(header->magic, "TSR!", 4) != 0 || header->version != 2 || header->header_nbytes != HEADER_NBYTES ||
        (header->flags & ~(uint32_t)FLAG_CHECKSUM) != 0)
        return 0;
    if (live->seq == 0 || live->seq == RETIRED || live->seq_copy != live->seq || live->layout != live->seq ||
        live->lease != 0 || live->guest != 0 || live->unused[0] != 0 || live->unused[1] != 0 || live->unused[2] != 0)
        return 0;
    if (header->payload_checksum >= (header->flags & FLAG_CHECKSUM ? UINT64_C(1) << 32 : 1)) return 0;
    if (header->code < 0 || header->code >= codes || itemsizes[header->code] == 0) return 0;
    if (header->ndim < 0 || header->ndim > MOST_DIMS) return 0;
    uint64_t count = 1, nbytes;
    for (int index = 0; index < MOST_DIMS; index++) {
        if (index >= header->ndim ? header->dims[index] != 0 : header->dims[index] <= 0) return 0;
        if (index < header->ndim && __builtin_mul_overflow(count, (uint64_t)header->dims[index], &count)) return 0;
    }
    if (header->count != count || __builtin_mul_overflow(count, (uint64_t)itemsizes[header->code], &nbytes) ||
        header->payload_nbytes != nbytes)
        return 0;
    if (header->payload_offset < HEADER_NBYTES || header->payload_offset % PAYLOAD_ALIGNMENT != 0 ||
        file_nbytes < header->payload_offset || file_nbytes - header->payload_offset != nbytes)
        return 0;
    uint32_t crc = crc_add(0, header, offsetof(Header, checksum));
    return header->checksum == crc_add(crc, header->dims, sizeof header->dims);
}

/* An open descriptor of a regular file, its size and its first bytes; -1 if anything is unusual. */
static int open_file(const char *path, Header *header, uint64_t *file_nbytes) {
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO is not to make us wait for its other end */
    if (fd < 0) return -1;
    if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && pread(fd, header, HEADER_NBYTES, 0) == HEADER_NBYTES) {
        *file_nbytes = (uint64_t)info.st_size;
        return fd;
    }
    close(fd);
    return -1;
}

const char open_usual_doc[] =
    "open_usual(path, itemsizes, is_private)\n--\n\nOpen, check and map a TSR file that is as most are.\n\n"
    "Args:\n    itemsizes: bytes, the size of an element for each dtype code; 0 for none.\n    is_private: whether to map it copy-on-write, else for reading.\n\nReturns:\n"
    "    The mapping of the file, the dtype code, the shape, the payload's offset. None if the file is none, or\n"
    "    needs more thought.";

PyObject *open_usual(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *path, *result = NULL;
    const char *itemsizes;
    Py_ssize_t codes;
    int is_private, fd;
    Header header;
    uint64_t file_nbytes = 0;
    if (!PyArg_ParseTuple(arguments, "O&y#p", PyUnicode_FSConverter, &path, &itemsizes, &codes, &is_private)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    fd = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? open_file(PyBytes_AS_STRING(path), &header, &file_nbytes) : -1;
    Py_END_ALLOW_THREADS
    Py_DECREF(path);
    if (fd < 0) Py_RETURN_NONE;
    PyObject *mapping = NULL, *shape = NULL;
    if (is_right(&header, file_nbytes, (const unsigned char *)itemsizes, codes)) {
        mapping = map_part(fd, (Py_ssize_t)file_nbytes, 0, is_private, is_private);
        shape = mapping == NULL ? NULL : PyTuple_New(header.ndim);
    }
    close(fd);
    for (int index = 0; shape != NULL && index < header.ndim; index++) {
        PyObject *size = PyLong_FromLongLong(header.dims[index]);
        if (size == NULL) Py_CLEAR(shape);
        else PyTuple_SET_ITEM(shape, index, size);
    }
    if (shape != NULL) result = Py_BuildValue("OiOI", mapping, (int)header.code, shape, (unsigned)header.payload_offset);
    Py_XDECREF(shape);
    Py_XDECREF(mapping);
    if (result != NULL) return result;
    PyErr_Clear(); /* the long way fails too, and says how */
    Py_RETURN_NONE;
}
