// TSR headers, read: bytes in, Header out. Pure; never opens, maps or allocates for what a header claims.
//
// The layouts are specified in the docstring of tr_mmap/tsr/__init__.py; this is tr_mmap/tsr/header.py in C++, with the
// same checks in the same order, so that both name the same fault. The reader refuses what the writer would not have
// written.
#ifndef TR_MMAP_HEADER_HPP
#define TR_MMAP_HEADER_HPP

#include "macros_off.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "crc32.hpp"
#include "dtype.hpp"
#include "errors.hpp"
#include "shape.hpp"
#include "wire.hpp"

namespace tr {

inline constexpr std::size_t V0_HEADER_NBYTES = wire::v0_header_nbytes;
inline constexpr std::size_t V1_HEADER_NBYTES = wire::v1_header_nbytes;
inline constexpr std::size_t V2_HEADER_NBYTES = wire::v2_header_nbytes;
inline constexpr std::size_t MAX_HEADER_NBYTES = wire::max_header_nbytes;  // enough for the header of any layout

/// One tensor's description. decode_header makes only those in which all fields agree.
struct Header {
    int version = 2;  // 0, 1 or 2, the layout
    DType dtype = DType::FP32;
    Shape shape;                                    // always of four sizes for v0, which stores no ndim
    std::uint64_t seq = 1;                          // publication number; 1 for v0 and v1
    std::uint64_t payload_offset = 0;               // bytes from the start of the file
    std::uint64_t payload_nbytes = 0;               // padding not included
    std::uint64_t created_ns = 0;                   // since 1970; 0 for v0 and v1
    std::optional<std::uint32_t> payload_checksum;  // CRC-32, where the file has one
    bool is_segment = false;                        // of a session that may recycle it

    std::uint64_t file_nbytes() const { return payload_offset + payload_nbytes; }

    friend bool operator==(const Header& a, const Header& b) {
        return a.version == b.version && a.dtype == b.dtype && a.shape == b.shape && a.seq == b.seq &&
               a.payload_offset == b.payload_offset && a.payload_nbytes == b.payload_nbytes &&
               a.created_ns == b.created_ns && a.payload_checksum == b.payload_checksum &&
               a.is_segment == b.is_segment;
    }
    friend bool operator!=(const Header& a, const Header& b) { return !(a == b); }
};

namespace detail {

inline constexpr std::uint32_t known_flags = wire::flag_checksum | wire::flag_segment | wire::flag_device;
// off_t and ssize_t: what a mapping can address.
inline constexpr std::uint64_t max_nbytes = std::numeric_limits<std::int64_t>::max();

/// Whether the bytes begin with a magic.
template <std::size_t count>
bool has_magic(const std::byte* bytes, const char (&magic)[count]) {
    return std::memcmp(bytes + wire::magic_offset, magic, count) == 0;
}

/// The field of a header at ``offset`` bytes from its start.
template <class T>
T load_le(const std::byte* header, std::size_t offset) {
    T value;
    std::memcpy(&value, header + offset, sizeof value);
    return value;
}

/// The checksum of a v2 header: of all its bytes but the live line and the checksum itself.
inline std::uint32_t header_checksum(const std::byte* header) {
    return crc32(header + wire::dims_offset, wire::v2_header_nbytes - wire::dims_offset,
                 crc32(header, wire::header_checksum_offset));
}

/// Throws the error of a file's header, with the file's path in the text.
struct Refuser {
    const std::string& path;
    [[noreturn]] void operator()(Fault fault, const std::string& what) const {
        throw TSRFormatError(path.empty() ? what : path + ": " + what, fault, path);
    }
};

inline std::string text_of(const std::int64_t* sizes, int count) {
    std::string text = "(";
    for (int i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
    return text + ")";
}

/// Compute element count and payload bytes of a shape; refuses one that no machine can address.
inline void check_sizes(const std::int64_t* sizes, int ndim, DType dtype, const Refuser& refuse, std::uint64_t& count,
                        std::uint64_t& nbytes) {
    if (std::any_of(sizes, sizes + ndim, [](std::int64_t size) { return size < 0; })) {
        refuse(Fault::BAD_DIMS, "shape " + text_of(sizes, ndim) + ", sizes are 0 or more");
    }
    std::int64_t extent = static_cast<std::int64_t>(itemsize(dtype));
    bool is_empty = false;
    for (int i = 0; i < ndim; ++i) {
        if (sizes[i] == 0) is_empty = true;
        else if (__builtin_mul_overflow(extent, sizes[i], &extent)) {
            refuse(Fault::TOO_LARGE,
                   "shape " + text_of(sizes, ndim) + " of " + dtype_name(dtype) + " is beyond 2**63-1 bytes");
        }
    }
    nbytes = is_empty ? 0 : static_cast<std::uint64_t>(extent);
    count = nbytes / itemsize(dtype);
}

inline Shape shape_of(const std::int64_t* sizes, int ndim) {
    return Shape(std::vector<std::int64_t>(sizes, sizes + ndim));
}

inline void check_offset(std::uint64_t offset, std::uint64_t nbytes, const Refuser& refuse) {
    if (offset < wire::v2_header_nbytes || offset % wire::payload_alignment_nbytes ||
        offset > std::numeric_limits<std::uint32_t>::max()) {
        refuse(Fault::BAD_OFFSET, "payload offset " + std::to_string(offset) + ", it must be a multiple of " +
                                      std::to_string(wire::payload_alignment_nbytes) + ", and at least " +
                                      std::to_string(wire::v2_header_nbytes));
    }
    if (nbytes > max_nbytes - offset) {
        refuse(Fault::TOO_LARGE,
               std::to_string(nbytes) + " bytes at " + std::to_string(offset) + " end beyond 2**63-1");
    }
}

/// Throw unless there are the bytes of a whole header.
inline void check_length(int version, std::size_t nbytes, std::size_t header_nbytes, const Refuser& refuse) {
    if (nbytes < header_nbytes) {
        refuse(Fault::TOO_SHORT, std::to_string(nbytes) + " bytes, a v" + std::to_string(version) + " header has " +
                                     std::to_string(header_nbytes));
    }
}

/// Throw unless the header states the size that its layout has.
inline void check_header_size(int version, const std::byte* data, std::size_t header_nbytes, const Refuser& refuse) {
    const auto found = load_le<std::int32_t>(data, wire::header_size_offset);
    if (found != static_cast<std::int32_t>(header_nbytes)) {
        refuse(Fault::BAD_HEADER_SIZE, "header size " + std::to_string(found) + ", v" + std::to_string(version) +
                                           " has " + std::to_string(header_nbytes));
    }
}

/// What v0 and v1 have in common: dtypes 1 to 8, 32-bit sizes.
inline Header decode_small(int version, std::int32_t code, const std::int64_t* sizes, int ndim, std::size_t offset,
                           const Refuser& refuse) {
    if (code < 1 || code > wire::max_dtype_code_v1) {
        refuse(Fault::BAD_DTYPE, "dtype code " + std::to_string(code) + ", v" + std::to_string(version) +
                                     " has 1 to " + std::to_string(wire::max_dtype_code_v1));
    }
    Header header;
    header.version = version;
    header.dtype = static_cast<DType>(code);
    std::uint64_t count = 0;
    check_sizes(sizes, ndim, header.dtype, refuse, count, header.payload_nbytes);
    header.payload_offset = offset;
    if (header.payload_nbytes > max_nbytes - offset) {
        refuse(Fault::TOO_LARGE, std::to_string(header.payload_nbytes) + " bytes end beyond 2**63-1");
    }
    header.shape = shape_of(sizes, ndim);
    return header;
}

/// The four dims of v0 and v1.
inline void load_dims_v1(const std::byte* data, std::size_t offset, std::int64_t (&sizes)[wire::max_ndim_v1]) {
    for (std::int64_t& size : sizes) {
        size = load_le<std::int32_t>(data, offset);
        offset += sizeof(std::int32_t);
    }
}

inline Header decode_v0(const std::byte* data, std::size_t nbytes, const Refuser& refuse) {
    check_length(0, nbytes, wire::v0_header_nbytes, refuse);
    std::int64_t sizes[wire::max_ndim_v1];
    load_dims_v1(data, wire::v0_dims_offset, sizes);
    const auto code = load_le<std::int32_t>(data, wire::v0_dtype_offset);
    return decode_small(0, code, sizes, wire::max_ndim_v1, wire::v0_header_nbytes, refuse);
}

inline Header decode_v1(const std::byte* data, std::size_t nbytes, const Refuser& refuse) {
    check_length(1, nbytes, wire::v1_header_nbytes, refuse);
    check_header_size(1, data, wire::v1_header_nbytes, refuse);
    // The three zero fields, at 12, 48 and 56, are ignored, as every other reader of v1 does.
    const auto ndim = load_le<std::int32_t>(data, wire::ndim_offset);
    if (ndim < 0 || ndim > wire::max_ndim_v1) {
        refuse(Fault::BAD_NDIM, "ndim " + std::to_string(ndim) + ", v1 has 0 to " + std::to_string(wire::max_ndim_v1));
    }
    std::int64_t sizes[wire::max_ndim_v1];
    load_dims_v1(data, wire::v1_dims_offset, sizes);
    const int unused = wire::max_ndim_v1 - ndim;
    if (std::any_of(sizes, sizes + unused, [](std::int64_t size) { return size != 1; })) {
        refuse(Fault::BAD_DIMS, "dims " + text_of(sizes, wire::max_ndim_v1) + " with ndim " + std::to_string(ndim) +
                                    ", the first " + std::to_string(unused) + " must be 1");
    }
    const auto code = load_le<std::int32_t>(data, wire::dtype_offset);
    Header header = decode_small(1, code, sizes + unused, ndim, wire::v1_header_nbytes, refuse);
    const auto count = load_le<std::int64_t>(data, wire::v1_count_offset);
    if (count != header.shape.numel()) {
        refuse(Fault::BAD_COUNT, "element count " + std::to_string(count) + ", the dims " +
                                     text_of(sizes, wire::max_ndim_v1) + " make " +
                                     std::to_string(header.shape.numel()));
    }
    return header;
}

/// With a device the bytes name it, as torch writes it, and zeros follow. Here a tensor is always in CPU memory.
inline void check_reserved(const std::byte* bytes, bool has_device, const Refuser& refuse) {
    bool has_ended = !has_device;
    for (std::size_t i = 0; i < wire::device_nbytes; ++i) {
        const auto value = std::to_integer<unsigned char>(bytes[i]);
        if (value == 0 && (i > 0 || !has_device)) {
            has_ended = true;
        } else if (has_ended || value < 0x20 || value > 0x7e) {
            refuse(Fault::BAD_RESERVED, "bytes " + std::to_string(wire::reserved_offset) + " to " +
                                            std::to_string(wire::seq_copy_offset - 1) +
                                            (has_device ? " must name a device" : " must be 0 and are not"));
        }
    }
}

inline Header decode_v2(const std::byte* data, std::size_t nbytes, const Refuser& refuse) {
    using std::to_string;
    check_length(2, nbytes, wire::v2_header_nbytes, refuse);
    check_header_size(2, data, wire::v2_header_nbytes, refuse);
    const auto seq = load_le<std::uint64_t>(data, wire::seq_offset);
    const auto seq_copy = load_le<std::uint64_t>(data, wire::seq_copy_offset);
    // Check seq before the checksum: while a writer publishes, the other bytes may be in any state.
    if (seq == 0) refuse(Fault::UNPUBLISHED, "seq is 0: the tensor is still being written; try again");
    if (seq == wire::seq_retired) {
        refuse(Fault::UNPUBLISHED, "seq is 2**64-1: the session has given this segment up; open the name again");
    }
    if (seq != seq_copy) {
        refuse(Fault::TORN, "seq is " + to_string(seq) + ", its copy " + to_string(seq_copy) +
                                ": read in the middle of a change; try again");
    }
    if (load_le<std::uint32_t>(data, wire::header_checksum_offset) != header_checksum(data)) {
        refuse(Fault::HEADER_CHECKSUM, "the header's checksum is not that of its bytes");
    }
    const auto flags = load_le<std::uint32_t>(data, wire::flags_offset);
    const bool is_segment = flags & wire::flag_segment;
    if (flags & ~known_flags || (flags & wire::flag_device && !is_segment)) {
        refuse(Fault::BAD_FLAGS, "flags " + to_string(flags) + ", known are 0 to " + to_string(known_flags));
    }
    check_reserved(data + wire::reserved_offset, flags & wire::flag_device, refuse);
    if (!is_segment) {
        if (load_le<std::uint64_t>(data, wire::lease_offset) || load_le<std::uint64_t>(data, wire::guest_offset)) {
            refuse(Fault::BAD_RESERVED, "lease and guest are not 0 outside a segment");
        }
        if (load_le<std::uint64_t>(data, wire::layout_seq_offset) != seq) {
            refuse(Fault::TORN, "layout_seq is not seq: outside a segment they are equal");
        }
    }
    const bool has_checksum = flags & wire::flag_checksum;
    const auto checksum = load_le<std::uint64_t>(data, wire::payload_checksum_offset);
    if (checksum >= (has_checksum ? std::uint64_t{1} << 32 : 1)) {
        refuse(Fault::BAD_RESERVED, "the payload checksum field holds " + to_string(checksum));
    }
    const auto code = load_le<std::int32_t>(data, wire::dtype_offset);
    if (code < 1 || code > max_dtype_code) {
        refuse(Fault::BAD_DTYPE, "dtype code " + to_string(code) + ", v2 has 1 to " + to_string(max_dtype_code));
    }
    const auto ndim = load_le<std::int32_t>(data, wire::ndim_offset);
    if (ndim < 0 || ndim > wire::max_ndim) {
        refuse(Fault::BAD_NDIM, "ndim " + to_string(ndim) + ", v2 has 0 to " + to_string(wire::max_ndim));
    }
    std::int64_t sizes[wire::max_ndim];
    std::memcpy(sizes, data + wire::dims_offset, sizeof sizes);
    if (std::any_of(sizes + ndim, sizes + wire::max_ndim, [](std::int64_t size) { return size != 0; })) {
        refuse(Fault::BAD_DIMS, "dims " + text_of(sizes, wire::max_ndim) + " with ndim " + to_string(ndim) +
                                    ", all after the first " + to_string(ndim) + " must be 0");
    }
    Header header;
    header.dtype = static_cast<DType>(code);
    std::uint64_t expected_count = 0;
    check_sizes(sizes, ndim, header.dtype, refuse, expected_count, header.payload_nbytes);
    const auto count = load_le<std::uint64_t>(data, wire::count_offset);
    if (count != expected_count) {
        refuse(Fault::BAD_COUNT, "element count " + to_string(count) + ", the shape " + text_of(sizes, ndim) +
                                     " makes " + to_string(expected_count));
    }
    const auto payload_nbytes = load_le<std::uint64_t>(data, wire::payload_size_offset);
    if (payload_nbytes != header.payload_nbytes) {
        refuse(Fault::BAD_PAYLOAD_SIZE, "payload of " + to_string(payload_nbytes) + " bytes, " + to_string(count) +
                                            " elements of " + dtype_name(header.dtype) + " make " +
                                            to_string(header.payload_nbytes));
    }
    header.payload_offset = load_le<std::uint32_t>(data, wire::payload_start_offset);
    check_offset(header.payload_offset, header.payload_nbytes, refuse);
    header.shape = shape_of(sizes, ndim);
    header.seq = seq;
    header.created_ns = load_le<std::uint64_t>(data, wire::created_offset);
    if (has_checksum) header.payload_checksum = static_cast<std::uint32_t>(checksum);
    header.is_segment = is_segment;
    return header;
}

inline std::string quoted(const std::byte* bytes, std::size_t count) {
    std::string text = "'";
    for (std::size_t i = 0; i < count; ++i) {
        const auto value = std::to_integer<unsigned char>(bytes[i]);
        if (value >= 0x20 && value < 0x7f) text += static_cast<char>(value);
        else text += "\\" + std::to_string(value);
    }
    return text + "'";
}

}  // namespace detail

/// Parse one header of any layout; validates everything, maps nothing.
///
/// @param data the first bytes of the file, 256 of them or the whole file; later bytes are ignored.
/// @param file_nbytes size of the file; nothing if it is not to be compared with the payload's extent.
/// @param path for the messages.
/// @throws TSRFormatError any defect; ``fault`` says which one.
inline Header decode_header(const void* data, std::size_t nbytes, std::optional<std::uint64_t> file_nbytes = {},
                            const std::string& path = {}) {
    const detail::Refuser refuse{path};
    const auto* bytes = static_cast<const std::byte*>(data);
    nbytes = std::min(nbytes, MAX_HEADER_NBYTES);
    if (nbytes < wire::version_offset + sizeof(std::int32_t)) {
        refuse(Fault::TOO_SHORT, std::to_string(nbytes) + " bytes, no TSR header is shorter than " +
                                     std::to_string(wire::v0_header_nbytes));
    }
    const bool is_v0 = detail::has_magic(bytes, wire::magic_v0);
    const bool is_tsr = detail::has_magic(bytes, wire::magic);
    if (detail::has_magic(bytes, wire::sealed_magic)) {
        refuse(Fault::SEALED, "the file is sealed; tr_mmap.load of Python opens it with the key it was saved with");
    }
    if (!is_v0 && !is_tsr) {
        refuse(Fault::BAD_MAGIC, "the file starts with " + detail::quoted(bytes, sizeof wire::magic) +
                                     ", a TSR file with 'TSR!' or 'TSR\\0'");
    }
    const auto version = detail::load_le<std::int32_t>(bytes, wire::version_offset);
    if (version != 1 && (is_v0 || version != wire::v2_version)) {
        refuse(Fault::BAD_VERSION, "version " + std::to_string(version) + " is unknown after that magic");
    }
    Header header = is_v0          ? detail::decode_v0(bytes, nbytes, refuse)
                    : version == 1 ? detail::decode_v1(bytes, nbytes, refuse)
                                   : detail::decode_v2(bytes, nbytes, refuse);
    if (file_nbytes && *file_nbytes < header.file_nbytes()) {
        refuse(Fault::TRUNCATED, std::to_string(*file_nbytes) + " bytes, the header wants " +
                                     std::to_string(header.file_nbytes()));
    }
    if (file_nbytes && *file_nbytes > header.file_nbytes() && !header.is_segment) {
        refuse(Fault::TRAILING_BYTES, std::to_string(*file_nbytes) + " bytes, the payload ends at " +
                                          std::to_string(header.file_nbytes()));
    }
    return header;
}

}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_HEADER_HPP
