// TSR headers, read: bytes in, Header out. Pure; never opens, maps or allocates for what a header claims.
//
// The layouts are specified in the docstring of tr_mmap/tsr/__init__.py; this is tr_mmap/tsr/header.py in C++, with the
// same checks in the same order, so that both name the same fault. Whoever reads refuses whatever the writer would not
// have written.
#ifndef TR_MMAP_HEADER_HPP
#define TR_MMAP_HEADER_HPP

#include <algorithm>
#include <array>
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

namespace tr {

inline constexpr std::size_t V0_HEADER_NBYTES = 28;
inline constexpr std::size_t V1_HEADER_NBYTES = 64;
inline constexpr std::size_t V2_HEADER_NBYTES = 256;
inline constexpr std::size_t MAX_HEADER_NBYTES = 256;  // what a reader reads to know any layout's header

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

inline constexpr std::uint32_t flag_checksum = 1;  // payload_checksum holds the payload's CRC-32
inline constexpr std::uint32_t flag_segment = 2;   // the live line is in use and the file may be longer
inline constexpr std::uint32_t known_flags = flag_checksum | flag_segment;
inline constexpr std::uint64_t max_nbytes = std::numeric_limits<std::int64_t>::max();
inline constexpr std::uint64_t payload_alignment = 256;
inline constexpr std::uint64_t seq_retired = ~std::uint64_t{0};  // the owner gave the segment up; forget it
inline constexpr int max_ndim_v1 = 4;  // N, C, H, W
inline constexpr std::array<char, 4> magic_v0 = {'T', 'S', 'R', '\0'};
inline constexpr std::array<char, 4> magic = {'T', 'S', 'R', '!'};
inline constexpr std::array<char, 4> magic_sealed = {'T', 'S', 'R', 'E'};

template <class T>
T load_le(const std::byte* bytes) {
    T value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
}
template <class T>
void store_le(std::byte* bytes, T value) {
    std::memcpy(bytes, &value, sizeof value);
}

/// Whose header is refused, for the messages.
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

/// Element count and payload bytes of sizes that the machine can address.
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
    if (offset < V2_HEADER_NBYTES || offset % payload_alignment || offset > std::numeric_limits<std::uint32_t>::max()) {
        refuse(Fault::BAD_OFFSET,
               "payload offset " + std::to_string(offset) + ", it must be a multiple of 256, and at least that");
    }
    if (nbytes > max_nbytes - offset) {
        refuse(Fault::TOO_LARGE,
               std::to_string(nbytes) + " bytes at " + std::to_string(offset) + " end beyond 2**63-1");
    }
}

/// What v0 and v1 have in common.
inline Header decode_small(int version, std::int32_t code, const std::int64_t* sizes, int ndim, std::size_t offset,
                           const Refuser& refuse) {
    if (code < 1 || code > max_dtype_code_v1) {
        refuse(Fault::BAD_DTYPE,
               "dtype code " + std::to_string(code) + ", v" + std::to_string(version) + " has 1 to 8");
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

inline Header decode_v0(const std::byte* data, std::size_t nbytes, const Refuser& refuse) {
    if (nbytes < V0_HEADER_NBYTES) refuse(Fault::TOO_SHORT, std::to_string(nbytes) + " bytes, a v0 header has 28");
    std::int64_t sizes[4];
    for (int i = 0; i < 4; ++i) sizes[i] = load_le<std::int32_t>(data + 12 + 4 * i);
    return decode_small(0, load_le<std::int32_t>(data + 8), sizes, 4, V0_HEADER_NBYTES, refuse);
}

inline Header decode_v1(const std::byte* data, std::size_t nbytes, const Refuser& refuse) {
    if (nbytes < V1_HEADER_NBYTES) refuse(Fault::TOO_SHORT, std::to_string(nbytes) + " bytes, a v1 header has 64");
    // The three zero fields, at 12, 48 and 56, are ignored, as every other reader of v1 does.
    const auto header_nbytes = load_le<std::int32_t>(data + 8);
    if (header_nbytes != static_cast<std::int32_t>(V1_HEADER_NBYTES)) {
        refuse(Fault::BAD_HEADER_SIZE, "header size " + std::to_string(header_nbytes) + ", v1 has 64");
    }
    const auto ndim = load_le<std::int32_t>(data + 20);
    if (ndim < 0 || ndim > max_ndim_v1) refuse(Fault::BAD_NDIM, "ndim " + std::to_string(ndim) + ", v1 has 0 to 4");
    std::int64_t sizes[4];
    for (int i = 0; i < 4; ++i) sizes[i] = load_le<std::int32_t>(data + 24 + 4 * i);
    const int unused = max_ndim_v1 - ndim;
    if (std::any_of(sizes, sizes + unused, [](std::int64_t size) { return size != 1; })) {
        refuse(Fault::BAD_DIMS, "dims " + text_of(sizes, 4) + " with ndim " + std::to_string(ndim) + ", the first " +
                                    std::to_string(unused) + " must be 1");
    }
    Header header = decode_small(1, load_le<std::int32_t>(data + 16), sizes + unused, ndim, V1_HEADER_NBYTES, refuse);
    const auto count = load_le<std::int64_t>(data + 40);
    if (count != header.shape.numel()) {
        refuse(Fault::BAD_COUNT, "element count " + std::to_string(count) + ", the dims " + text_of(sizes, 4) +
                                     " make " + std::to_string(header.shape.numel()));
    }
    return header;
}

inline Header decode_v2(const std::byte* data, std::size_t nbytes, const Refuser& refuse) {
    using std::to_string;
    if (nbytes < V2_HEADER_NBYTES) refuse(Fault::TOO_SHORT, to_string(nbytes) + " bytes, a v2 header has 256");
    const auto header_nbytes = load_le<std::int32_t>(data + 8);
    if (header_nbytes != static_cast<std::int32_t>(V2_HEADER_NBYTES)) {
        refuse(Fault::BAD_HEADER_SIZE, "header size " + to_string(header_nbytes) + ", v2 has 256");
    }
    const auto seq = load_le<std::uint64_t>(data + 64);
    const auto seq_copy = load_le<std::uint64_t>(data + 120);
    // seq comes before the checksum: while a writer is at work the rest may be in any state.
    if (seq == 0) refuse(Fault::UNPUBLISHED, "seq is 0: the tensor is still being written; try again");
    if (seq == seq_retired) {
        refuse(Fault::UNPUBLISHED, "seq is 2**64-1: the session has given this segment up; open the name again");
    }
    if (seq != seq_copy) {
        refuse(Fault::TORN, "seq is " + to_string(seq) + ", its copy " + to_string(seq_copy) +
                                ": read in the middle of a change; try again");
    }
    if (load_le<std::uint32_t>(data + 60) != crc32(data + 128, 128, crc32(data, 60))) {
        refuse(Fault::HEADER_CHECKSUM, "the header's checksum is not that of its bytes");
    }
    const auto flags = load_le<std::uint32_t>(data + 12);
    if (flags & ~known_flags) refuse(Fault::BAD_FLAGS, "flags " + to_string(flags) + ", known are 0 to 3");
    for (std::size_t at = 96; at < 120; at += 8) {
        if (load_le<std::uint64_t>(data + at)) refuse(Fault::BAD_RESERVED, "bytes 96 to 119 must be 0 and are not");
    }
    const bool is_segment = flags & flag_segment;
    if (!is_segment) {
        if (load_le<std::uint64_t>(data + 80) || load_le<std::uint64_t>(data + 88)) {
            refuse(Fault::BAD_RESERVED, "lease and guest are not 0 outside a segment");
        }
        if (load_le<std::uint64_t>(data + 72) != seq) {
            refuse(Fault::TORN, "layout_seq is not seq: outside a segment they are equal");
        }
    }
    const bool has_checksum = flags & flag_checksum;
    const auto checksum = load_le<std::uint64_t>(data + 48);
    if (checksum >= (has_checksum ? std::uint64_t{1} << 32 : 1)) {
        refuse(Fault::BAD_RESERVED, "the payload checksum field holds " + to_string(checksum));
    }
    const auto code = load_le<std::int32_t>(data + 16);
    if (code < 1 || code > max_dtype_code) {
        refuse(Fault::BAD_DTYPE, "dtype code " + to_string(code) + ", v2 has 1 to " + to_string(max_dtype_code));
    }
    const auto ndim = load_le<std::int32_t>(data + 20);
    if (ndim < 0 || ndim > MAX_NDIM) refuse(Fault::BAD_NDIM, "ndim " + to_string(ndim) + ", v2 has 0 to 16");
    std::int64_t sizes[MAX_NDIM];
    for (int i = 0; i < MAX_NDIM; ++i) sizes[i] = load_le<std::int64_t>(data + 128 + 8 * i);
    if (std::any_of(sizes + ndim, sizes + MAX_NDIM, [](std::int64_t size) { return size != 0; })) {
        refuse(Fault::BAD_DIMS, "dims " + text_of(sizes, MAX_NDIM) + " with ndim " + to_string(ndim) +
                                    ", all after the first " + to_string(ndim) + " must be 0");
    }
    Header header;
    header.dtype = static_cast<DType>(code);
    std::uint64_t count = 0;
    check_sizes(sizes, ndim, header.dtype, refuse, count, header.payload_nbytes);
    if (load_le<std::uint64_t>(data + 32) != count) {
        refuse(Fault::BAD_COUNT, "element count " + to_string(load_le<std::uint64_t>(data + 32)) + ", the shape " +
                                     text_of(sizes, ndim) + " makes " + to_string(count));
    }
    if (load_le<std::uint64_t>(data + 24) != header.payload_nbytes) {
        refuse(Fault::BAD_PAYLOAD_SIZE, "payload of " + to_string(load_le<std::uint64_t>(data + 24)) + " bytes, " +
                                            to_string(count) + " elements of " + dtype_name(header.dtype) + " make " +
                                            to_string(header.payload_nbytes));
    }
    header.payload_offset = load_le<std::uint32_t>(data + 56);
    check_offset(header.payload_offset, header.payload_nbytes, refuse);
    header.shape = shape_of(sizes, ndim);
    header.seq = seq;
    header.created_ns = load_le<std::uint64_t>(data + 40);
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
/// @param data the first bytes of the file, 256 of them or the whole file; more are not looked at.
/// @param file_nbytes size of the file, or nothing not to compare the payload's extent with it.
/// @param path for the messages.
/// @throws TSRFormatError any defect; ``fault`` says which one.
inline Header decode_header(const void* data, std::size_t nbytes, std::optional<std::uint64_t> file_nbytes = {},
                            const std::string& path = {}) {
    const detail::Refuser refuse{path};
    const auto* bytes = static_cast<const std::byte*>(data);
    nbytes = std::min(nbytes, MAX_HEADER_NBYTES);
    if (nbytes < 8) {
        refuse(Fault::TOO_SHORT, std::to_string(nbytes) + " bytes, no TSR header is shorter than 28");
    }
    const bool is_old = std::memcmp(bytes, detail::magic_v0.data(), 4) == 0;
    const bool is_tsr = std::memcmp(bytes, detail::magic.data(), 4) == 0;
    if (std::memcmp(bytes, detail::magic_sealed.data(), 4) == 0) {
        refuse(Fault::SEALED, "the file is sealed; tr_mmap.load of Python opens it with the key it was saved with");
    }
    if (!is_old && !is_tsr) {
        refuse(Fault::BAD_MAGIC, "the file starts with " + detail::quoted(bytes, 4) + ", a TSR file with 'TSR!'");
    }
    const auto version = detail::load_le<std::int32_t>(bytes + 4);
    if (is_old ? version != 1 : version != 1 && version != 2) {
        refuse(Fault::BAD_VERSION, "version " + std::to_string(version) + " is unknown after that magic");
    }
    Header header = is_old         ? detail::decode_v0(bytes, nbytes, refuse)
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

#endif  // TR_MMAP_HEADER_HPP
