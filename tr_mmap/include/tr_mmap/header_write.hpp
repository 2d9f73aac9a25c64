// TSR headers, written: Header in, bytes out. Pure; refuses whatever the reader would refuse.
#ifndef TR_MMAP_HEADER_WRITE_HPP
#define TR_MMAP_HEADER_WRITE_HPP

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

/// v0 and v1: dtypes 1 to 8, at most four dims of 31 bits, aligned right.
inline std::vector<std::byte> encode_small(const Header& header, const Refuser& refuse) {
    const Shape& shape = header.shape;
    const int ndim = shape.ndim();
    const auto code = static_cast<std::int32_t>(header.dtype);
    const std::string layout = "v" + std::to_string(header.version);
    if (header.payload_checksum) refuse(Fault::UNREPRESENTABLE, layout + " has no place for a checksum; use v2");
    if (code < 1 || code > max_dtype_code_v1) {
        refuse(Fault::UNREPRESENTABLE, std::string(dtype_name(header.dtype)) + " has no code in " + layout + "; use v2");
    }
    if (ndim > max_ndim_v1) {
        refuse(Fault::UNREPRESENTABLE, std::to_string(ndim) + " dims, " + layout + " holds at most 4; use v2");
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
    std::vector<std::byte> raw(is_v1 ? V1_HEADER_NBYTES : V0_HEADER_NBYTES);
    std::memcpy(raw.data(), is_v1 ? magic.data() : magic_v0.data(), 4);
    store_le<std::int32_t>(&raw[4], 1);
    if (is_v1) {
        store_le<std::int32_t>(&raw[8], static_cast<std::int32_t>(V1_HEADER_NBYTES));
        store_le<std::int32_t>(&raw[20], ndim);
        store_le<std::uint64_t>(&raw[40], count);
    }
    store_le<std::int32_t>(&raw[is_v1 ? 16 : 8], code);
    std::byte* dims = &raw[is_v1 ? 24 : 12];
    for (int i = 0; i < max_ndim_v1; ++i) {
        const int axis = i - (max_ndim_v1 - ndim);
        store_le<std::int32_t>(dims + 4 * i, axis < 0 ? 1 : static_cast<std::int32_t>(shape[axis]));
    }
    return raw;
}

inline std::vector<std::byte> encode_v2(const Header& header, const Refuser& refuse) {
    std::uint64_t count = 0;
    std::uint64_t nbytes = 0;
    check_sizes(header.shape.begin(), header.shape.ndim(), header.dtype, refuse, count, nbytes);
    const std::uint64_t offset = header.payload_offset ? header.payload_offset : V2_HEADER_NBYTES;
    check_offset(offset, nbytes, refuse);
    if (header.seq == seq_retired || (header.seq == 0 && !header.is_segment)) {
        refuse(Fault::UNREPRESENTABLE, "seq " + std::to_string(header.seq) + ", a published tensor has 1 to 2**64-2");
    }
    std::vector<std::byte> raw(V2_HEADER_NBYTES);
    std::memcpy(raw.data(), magic.data(), 4);
    store_le<std::int32_t>(&raw[4], 2);
    store_le<std::int32_t>(&raw[8], static_cast<std::int32_t>(V2_HEADER_NBYTES));
    store_le<std::uint32_t>(&raw[12],
                            (header.payload_checksum ? flag_checksum : 0) | (header.is_segment ? flag_segment : 0));
    store_le<std::int32_t>(&raw[16], static_cast<std::int32_t>(header.dtype));
    store_le<std::int32_t>(&raw[20], header.shape.ndim());
    store_le<std::uint64_t>(&raw[24], nbytes);
    store_le<std::uint64_t>(&raw[32], count);
    store_le<std::uint64_t>(&raw[40], header.created_ns);
    store_le<std::uint64_t>(&raw[48], header.payload_checksum.value_or(0));
    store_le<std::uint32_t>(&raw[56], static_cast<std::uint32_t>(offset));
    std::byte* dims = &raw[128];
    for (const std::int64_t size : header.shape) {
        store_le<std::int64_t>(dims, size);
        dims += 8;
    }
    store_le<std::uint32_t>(&raw[60], crc32(&raw[128], 128, crc32(raw.data(), 60)));
    for (const std::size_t at : {std::size_t{64}, std::size_t{72}, std::size_t{120}}) {
        store_le<std::uint64_t>(&raw[at], header.seq);  // seq, layout_seq, and seq again
    }
    return raw;
}

}  // namespace detail

/// The bytes of a header: 28, 64 or 256, with no lease and no guest. payload_nbytes follows from shape and dtype;
/// payload_offset 0 is the earliest place. A segment's may have seq 0, "being written".
///
/// @throws TSRFormatError UNREPRESENTABLE in that layout, BAD_VERSION, or whatever decode_header would refuse.
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

#endif  // TR_MMAP_HEADER_WRITE_HPP
