// TSR headers, written: Header in, bytes out. Pure; refuses what the reader would refuse.
#ifndef TR_MMAP_HEADER_WRITE_HPP
#define TR_MMAP_HEADER_WRITE_HPP

#include "macros_off.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "header.hpp"

namespace tr {
namespace detail {

/// Store a field of a header at ``offset`` bytes from its start.
template <class T>
void store_le(std::vector<std::byte>& header, std::size_t offset, T value) {
    std::memcpy(header.data() + offset, &value, sizeof value);
}

/// v0 and v1: dtypes 1 to 8, at most four dims of 31 bits, aligned right.
inline std::vector<std::byte> encode_small(const Header& header, const Refuser& refuse) {
    const Shape& shape = header.shape;
    const int ndim = shape.ndim();
    const auto code = static_cast<std::int32_t>(header.dtype);
    const std::string layout = "v" + std::to_string(header.version);
    if (header.payload_checksum) refuse(Fault::UNREPRESENTABLE, layout + " has no place for a checksum; use v2");
    if (code < 1 || code > wire::max_dtype_code_v1) {
        const std::string name = dtype_name(header.dtype);
        refuse(Fault::UNREPRESENTABLE, name + " has no code in " + layout + "; use v2");
    }
    if (ndim > wire::max_ndim_v1) {
        refuse(Fault::UNREPRESENTABLE, std::to_string(ndim) + " dims, " + layout + " holds at most " +
                                           std::to_string(wire::max_ndim_v1) + "; use v2");
    }
    constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
    if (std::any_of(shape.begin(), shape.end(), [](std::int64_t size) { return size > most; })) {
        refuse(Fault::UNREPRESENTABLE,
               "shape " + shape.to_string() + ", a size in " + layout + " is below 2**31; use v2");
    }
    std::uint64_t count = 0;
    std::uint64_t nbytes = 0;
    check_sizes(shape.begin(), ndim, header.dtype, refuse, count, nbytes);
    const bool is_v1 = header.version == 1;
    std::vector<std::byte> raw(is_v1 ? wire::v1_header_nbytes : wire::v0_header_nbytes);
    std::memcpy(&raw[wire::magic_offset], is_v1 ? wire::magic : wire::magic_v0, sizeof wire::magic);
    store_le<std::int32_t>(raw, wire::version_offset, 1);
    if (is_v1) {
        store_le<std::int32_t>(raw, wire::header_size_offset, static_cast<std::int32_t>(wire::v1_header_nbytes));
        store_le<std::int32_t>(raw, wire::ndim_offset, ndim);
        store_le<std::uint64_t>(raw, wire::v1_count_offset, count);
    }
    store_le<std::int32_t>(raw, is_v1 ? wire::dtype_offset : wire::v0_dtype_offset, code);
    std::size_t offset = is_v1 ? wire::v1_dims_offset : wire::v0_dims_offset;
    for (int axis = ndim - wire::max_ndim_v1; axis < ndim; ++axis) {
        store_le<std::int32_t>(raw, offset, axis < 0 ? 1 : static_cast<std::int32_t>(shape[axis]));
        offset += sizeof(std::int32_t);
    }
    return raw;
}

inline std::vector<std::byte> encode_v2(const Header& header, const Refuser& refuse) {
    std::uint64_t count = 0;
    std::uint64_t nbytes = 0;
    check_sizes(header.shape.begin(), header.shape.ndim(), header.dtype, refuse, count, nbytes);
    const std::uint64_t payload_offset = header.payload_offset ? header.payload_offset : wire::v2_header_nbytes;
    check_offset(payload_offset, nbytes, refuse);
    if (header.seq == wire::seq_retired || (header.seq == 0 && !header.is_segment)) {
        refuse(Fault::UNREPRESENTABLE, "seq " + std::to_string(header.seq) + ", a published tensor has 1 to 2**64-2");
    }
    const std::uint32_t flags =
        (header.payload_checksum ? wire::flag_checksum : 0) | (header.is_segment ? wire::flag_segment : 0);
    std::vector<std::byte> raw(wire::v2_header_nbytes);
    std::memcpy(&raw[wire::magic_offset], wire::magic, sizeof wire::magic);
    store_le<std::int32_t>(raw, wire::version_offset, wire::v2_version);
    store_le<std::int32_t>(raw, wire::header_size_offset, static_cast<std::int32_t>(wire::v2_header_nbytes));
    store_le<std::uint32_t>(raw, wire::flags_offset, flags);
    store_le<std::int32_t>(raw, wire::dtype_offset, static_cast<std::int32_t>(header.dtype));
    store_le<std::int32_t>(raw, wire::ndim_offset, header.shape.ndim());
    store_le<std::uint64_t>(raw, wire::payload_size_offset, nbytes);
    store_le<std::uint64_t>(raw, wire::count_offset, count);
    store_le<std::uint64_t>(raw, wire::created_offset, header.created_ns);
    store_le<std::uint64_t>(raw, wire::payload_checksum_offset, header.payload_checksum.value_or(0));
    store_le<std::uint32_t>(raw, wire::payload_start_offset, static_cast<std::uint32_t>(payload_offset));
    std::size_t offset = wire::dims_offset;
    for (const std::int64_t size : header.shape) {
        store_le<std::int64_t>(raw, offset, size);
        offset += sizeof size;
    }
    store_le<std::uint32_t>(raw, wire::header_checksum_offset, header_checksum(raw.data()));
    for (const std::size_t each : {wire::seq_offset, wire::layout_seq_offset, wire::seq_copy_offset}) {
        store_le<std::uint64_t>(raw, each, header.seq);
    }
    return raw;
}

}  // namespace detail

/// The bytes of a header: 28, 64 or 256, with no lease and no guest. payload_nbytes is computed from shape and dtype;
/// a payload_offset of 0 means the first possible one. A segment's header may have seq 0, "being written".
///
/// @throws TSRFormatError UNREPRESENTABLE in that layout, BAD_VERSION, or what decode_header would refuse.
inline std::vector<std::byte> encode_header(const Header& header) {
    const std::string nowhere;
    const detail::Refuser refuse{nowhere};
    if (header.version < 0 || header.version > 2) {
        refuse(Fault::BAD_VERSION,
               "version " + std::to_string(header.version) + " is unknown; 0, 1 and 2 can be written");
    }
    return header.version == 2 ? detail::encode_v2(header, refuse) : detail::encode_small(header, refuse);
}

}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_HEADER_WRITE_HPP
