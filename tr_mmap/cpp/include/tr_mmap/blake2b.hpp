// BLAKE2b with a key and a personalization, RFC 7693: bytes in, digest out.
#ifndef TR_MMAP_BLAKE2B_HPP
#define TR_MMAP_BLAKE2B_HPP

#include "macros_off.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace tr {
namespace detail {

/// A digest that is fed piece by piece. A copy goes on from what the original was fed.
class Blake2b {
public:
    static constexpr std::size_t block_nbytes = 128, most_digest_nbytes = 64, person_nbytes = 16;

    /// @param key at most 64 bytes; "" for none.
    /// @param person at most 16 bytes, which tell digests of different uses apart.
    Blake2b(std::size_t digest_nbytes, std::string_view key, std::string_view person) : digest_nbytes_(digest_nbytes) {
        std::array<unsigned char, 64> parameters{};
        parameters[0] = static_cast<unsigned char>(digest_nbytes);
        parameters[1] = static_cast<unsigned char>(key.size());
        parameters[2] = parameters[3] = 1;  // no tree
        std::memcpy(&parameters[64 - person_nbytes], person.data(), person.size());
        for (std::size_t i = 0; i < state_.size(); ++i) state_[i] = start[i] ^ load(&parameters[8 * i]);
        if (key.empty()) return;
        std::array<char, block_nbytes> block{};
        std::memcpy(block.data(), key.data(), key.size());
        update({block.data(), block.size()});
    }

    void update(std::string_view data) {
        while (!data.empty()) {
            if (filled_ == block_nbytes) compress(false);  // not before: the last block is compressed in another way
            const std::size_t count = data.size() < block_nbytes - filled_ ? data.size() : block_nbytes - filled_;
            std::memcpy(&block_[filled_], data.data(), count);
            filled_ += count;
            data.remove_prefix(count);
        }
    }

    /// The digest of all that it was fed; its first digest_nbytes count. Ends the object's use.
    std::array<unsigned char, most_digest_nbytes> finish() {
        std::memset(&block_[filled_], 0, block_nbytes - filled_);
        compress(true);
        std::array<unsigned char, most_digest_nbytes> digest{};
        std::memcpy(digest.data(), state_.data(), digest_nbytes_);  // little-endian, as all that we run on
        return digest;
    }

private:
    static constexpr std::array<std::uint64_t, 8> start = {  // those of SHA-512
        0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
        0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};
    static constexpr unsigned char order[10][16] = {
        {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
        {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
        {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
        {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
        {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};

    static std::uint64_t load(const unsigned char* bytes) {
        std::uint64_t word;
        std::memcpy(&word, bytes, sizeof word);
        return word;
    }
    static std::uint64_t rotated(std::uint64_t word, int count) { return word >> count | word << (64 - count); }

    void compress(bool is_last) {
        fed_nbytes_ += filled_;
        filled_ = 0;
        std::array<std::uint64_t, 16> m, v;
        for (std::size_t i = 0; i < m.size(); ++i) m[i] = load(&block_[8 * i]);
        for (std::size_t i = 0; i < 8; ++i) {
            v[i] = state_[i];
            v[i + 8] = start[i];
        }
        v[12] ^= fed_nbytes_;  // no message has 2**64 bytes, so the second word of the count is 0
        if (is_last) v[14] = ~v[14];
        const auto mix = [&v](std::size_t a, std::size_t b, std::size_t c, std::size_t d, std::uint64_t x, std::uint64_t y) {
            v[a] += v[b] + x;
            v[d] = rotated(v[d] ^ v[a], 32);
            v[c] += v[d];
            v[b] = rotated(v[b] ^ v[c], 24);
            v[a] += v[b] + y;
            v[d] = rotated(v[d] ^ v[a], 16);
            v[c] += v[d];
            v[b] = rotated(v[b] ^ v[c], 63);
        };
        for (std::size_t round = 0; round < 12; ++round) {
            const unsigned char* const s = order[round % 10];
            for (std::size_t i = 0; i < 4; ++i) mix(i, i + 4, i + 8, i + 12, m[s[2 * i]], m[s[2 * i + 1]]);
            for (std::size_t i = 0; i < 4; ++i) {
                mix(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, m[s[8 + 2 * i]], m[s[9 + 2 * i]]);
            }
        }
        for (std::size_t i = 0; i < 8; ++i) state_[i] ^= v[i] ^ v[i + 8];
    }

    std::array<std::uint64_t, 8> state_;
    std::array<unsigned char, block_nbytes> block_;
    std::size_t filled_ = 0;  // bytes of the block
    std::uint64_t fed_nbytes_ = 0;
    std::size_t digest_nbytes_;
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_BLAKE2B_HPP
