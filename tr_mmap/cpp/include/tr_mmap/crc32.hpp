// CRC-32 as in zlib and PNG (reflected polynomial 0xEDB88320), eight bytes a step ("slicing by 8"). Pure.
#ifndef TR_MMAP_CRC32_HPP
#define TR_MMAP_CRC32_HPP

#include "macros_off.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace tr {
namespace detail {

using Crc32Tables = std::array<std::array<std::uint32_t, 256>, 8>;

constexpr Crc32Tables make_crc32_tables() {
    Crc32Tables tables{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t value = byte;
        for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) ? 0xEDB88320u : 0);
        tables[0][byte] = value;
    }
    for (std::size_t slice = 1; slice < 8; ++slice) {
        for (std::size_t byte = 0; byte < 256; ++byte) {
            const std::uint32_t previous = tables[slice - 1][byte];
            tables[slice][byte] = (previous >> 8) ^ tables[0][previous & 0xff];
        }
    }
    return tables;
}

inline constexpr Crc32Tables crc32_tables = make_crc32_tables();

}  // namespace detail

/// The checksum of some bytes. With the checksum of earlier bytes in ``crc``: of these, followed by the new ones.
inline std::uint32_t crc32(const void* data, std::size_t nbytes, std::uint32_t crc = 0) {
    const auto& t = detail::crc32_tables;
    const auto* bytes = static_cast<const unsigned char*>(data);
    crc = ~crc;
    for (; nbytes >= 8; nbytes -= 8, bytes += 8) {
        std::uint64_t word = 0;
        std::memcpy(&word, bytes, 8);
        word ^= crc;
        crc = t[7][word & 0xff] ^ t[6][(word >> 8) & 0xff] ^ t[5][(word >> 16) & 0xff] ^ t[4][(word >> 24) & 0xff] ^
              t[3][(word >> 32) & 0xff] ^ t[2][(word >> 40) & 0xff] ^ t[1][(word >> 48) & 0xff] ^ t[0][word >> 56];
    }
    for (; nbytes > 0; --nbytes, ++bytes) crc = (crc >> 8) ^ t[0][(crc ^ *bytes) & 0xff];
    return ~crc;
}

}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_CRC32_HPP
