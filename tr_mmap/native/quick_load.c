/* The fast path of load(): opens, checks and maps a plain TSR file of the native layout. Every check is also one
 * of tsr/header.py; a file that fails one takes the slow path, which says what is wrong. Never raises for a bad
 * file, and never reads a payload. */
#include "lease_words.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

typedef struct {
    char magic[sizeof WIRE_MAGIC - 1];
    int32_t version, header_nbytes;
    uint32_t flags;
    int32_t dtype_code, ndim;
    uint64_t payload_nbytes, count, created_ns, payload_checksum;
    uint32_t payload_offset, header_checksum;
    LiveLine live;
    int64_t dims[WIRE_MAX_NDIM];
} Header;

#define CHECK_OFFSET(field, offset) \
    _Static_assert(offsetof(Header, field) == (offset), "wire/header.py has " #field " elsewhere")
CHECK_OFFSET(magic, WIRE_MAGIC_OFFSET);
CHECK_OFFSET(version, WIRE_VERSION_OFFSET);
CHECK_OFFSET(header_nbytes, WIRE_HEADER_SIZE_OFFSET);
CHECK_OFFSET(flags, WIRE_FLAGS_OFFSET);
CHECK_OFFSET(dtype_code, WIRE_DTYPE_OFFSET);
CHECK_OFFSET(ndim, WIRE_NDIM_OFFSET);
CHECK_OFFSET(payload_nbytes, WIRE_PAYLOAD_SIZE_OFFSET);
CHECK_OFFSET(count, WIRE_COUNT_OFFSET);
CHECK_OFFSET(created_ns, WIRE_CREATED_OFFSET);
CHECK_OFFSET(payload_checksum, WIRE_PAYLOAD_CHECKSUM_OFFSET);
CHECK_OFFSET(payload_offset, WIRE_PAYLOAD_START_OFFSET);
CHECK_OFFSET(header_checksum, WIRE_HEADER_CHECKSUM_OFFSET);
CHECK_OFFSET(live, WIRE_LIVE_OFFSET);
CHECK_OFFSET(dims, WIRE_DIMS_OFFSET);
_Static_assert(sizeof(Header) == WIRE_V2_HEADER_NBYTES, "the dims end with the header");

static uint32_t crc_table[256];

void crc_prepare(void) {
    for (uint32_t index = 0; index < 256; index++) {
        uint32_t value = index;
        for (int bit = 0; bit < 8; bit++) value = value & 1 ? value >> 1 ^ 0xEDB88320u : value >> 1;
        crc_table[index] = value;
    }
}

/* Continues a CRC-32, as zlib.crc32() does. */
static uint32_t crc_add(uint32_t crc, const void *data, size_t nbytes) {
    const unsigned char *bytes = data;
    crc = ~crc;
    while (nbytes-- > 0) crc = crc_table[(crc ^ *bytes++) & 0xFF] ^ crc >> 8;
    return ~crc;
}

/* Whether the live line is that of a finished file that no owner will fill again. */
static int is_live_line_plain(const LiveLine *live) {
    return live->seq != 0 && live->seq != WIRE_SEQ_RETIRED && live->seq_copy == live->seq &&
           live->layout_seq == live->seq && live->lease == WIRE_LEASE_FREE && live->guest == 0 &&
           live->reserved[0] == 0 && live->reserved[1] == 0 && live->reserved[2] == 0;
}

/* Whether the header is valid, and the file exactly as long as it says. `itemsizes` has a byte for each dtype code. */
static int is_valid(const Header *header, uint64_t file_nbytes, const unsigned char *itemsizes, Py_ssize_t codes) {
    if (memcmp(header->magic, WIRE_MAGIC, sizeof header->magic) != 0 || header->version != WIRE_V2_VERSION ||
        header->header_nbytes != WIRE_V2_HEADER_NBYTES || (header->flags & ~(uint32_t)WIRE_FLAG_CHECKSUM) != 0)
        return 0;
    if (!is_live_line_plain(&header->live)) return 0;
    /* the payload's CRC-32, which has 32 bits; 0 without the flag */
    if (header->payload_checksum >= (header->flags & WIRE_FLAG_CHECKSUM ? UINT64_C(1) << 32 : 1)) return 0;
    if (header->dtype_code < 0 || header->dtype_code >= codes || itemsizes[header->dtype_code] == 0) return 0;
    if (header->ndim < 0 || header->ndim > WIRE_MAX_NDIM) return 0;
    uint64_t count = 1, nbytes;
    for (int index = 0; index < WIRE_MAX_NDIM; index++) {
        if (index >= header->ndim ? header->dims[index] != 0 : header->dims[index] <= 0) return 0;
        if (index < header->ndim && __builtin_mul_overflow(count, (uint64_t)header->dims[index], &count)) return 0;
    }
    if (header->count != count || __builtin_mul_overflow(count, (uint64_t)itemsizes[header->dtype_code], &nbytes) ||
        header->payload_nbytes != nbytes)
        return 0;
    if (header->payload_offset < WIRE_V2_HEADER_NBYTES ||
        header->payload_offset % WIRE_PAYLOAD_ALIGNMENT_NBYTES != 0 || file_nbytes < header->payload_offset ||
        file_nbytes - header->payload_offset != nbytes)
        return 0;
    uint32_t crc = crc_add(0, header, offsetof(Header, header_checksum));
    return header->header_checksum == crc_add(crc, header->dims, sizeof header->dims);
}

enum { TMPFS_NUMBER = 0x01021994 }; /* of statfs, as in linux/magic.h */

/* The number by which a session names the file instead of copying it; 0 if it does not: it is small, or not in memory. */
static uint64_t number_to_give(int fd, const struct stat *info) {
    struct statfs system;
    if (info->st_size < WIRE_GIVEN_NBYTES || fstatfs(fd, &system) != 0 || system.f_type != TMPFS_NUMBER) return 0;
    return info->st_ino;
}

/* An open descriptor of a regular file, its header, its size and its number; -1 if it cannot be had. */
static int open_file(const char *path, Header *header, uint64_t *file_nbytes, uint64_t *number) {
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not make us wait for a writer */
    if (fd < 0) return -1;
    if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode) &&
        pread(fd, header, sizeof *header, 0) == (ssize_t)sizeof *header) {
        *file_nbytes = (uint64_t)info.st_size;
        *number = number_to_give(fd, &info);
        return fd;
    }
    close(fd);
    return -1;
}

const char quick_load_doc[] =
    "quick_load(path, itemsizes, is_private)\n--\n\nOpen, check and map a plain TSR file of the native layout.\n\n"
    "Args:\n"
    "    path: of the file.\n"
    "    itemsizes: bytes, the size of an element for each dtype code; 0 for none.\n"
    "    is_private: whether to map it copy-on-write, else for reading.\n\n"
    "Returns:\n"
    "    The mapping of the file, the dtype code, the shape, the payload's offset, and the file's inode if it is large\n"
    "    and on tmpfs, else 0. None if the slow path is needed: the file is another, or cannot be mapped.";

PyObject *py_quick_load(PyObject *module, PyObject *arguments) {
    PyObject *path, *result = NULL;
    const char *itemsizes;
    Py_ssize_t codes;
    int is_private, fd;
    Header header;
    uint64_t file_nbytes = 0, number = 0;
    if (!PyArg_ParseTuple(arguments, "O&y#p", PyUnicode_FSConverter, &path, &itemsizes, &codes, &is_private))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    fd = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? open_file(PyBytes_AS_STRING(path), &header, &file_nbytes, &number)
                                                    : -1;
    Py_END_ALLOW_THREADS
    Py_DECREF(path);
    if (fd < 0) Py_RETURN_NONE;
    PyObject *mapping = NULL, *shape = NULL;
    if (is_valid(&header, file_nbytes, (const unsigned char *)itemsizes, codes)) {
        mapping = map_part(state_of(module), fd, (Py_ssize_t)file_nbytes, 0, is_private, is_private);
        shape = mapping == NULL ? NULL : PyTuple_New(header.ndim);
    }
    close(fd);
    for (int index = 0; shape != NULL && index < header.ndim; index++) {
        PyObject *size = PyLong_FromLongLong(header.dims[index]);
        if (size == NULL) Py_CLEAR(shape);
        else PyTuple_SET_ITEM(shape, index, size);
    }
    if (shape != NULL)
        result = Py_BuildValue("OiOIK", mapping, (int)header.dtype_code, shape, (unsigned)header.payload_offset,
                               (unsigned long long)number);
    Py_XDECREF(shape);
    Py_XDECREF(mapping);
    if (result != NULL) return result;
    PyErr_Clear(); /* the slow path fails too, and says how */
    Py_RETURN_NONE;
}
