// MACs of control messages: proof that the peer wrote them. Text in, text out. tr_mmap/protocol/mac.py says what a signed
// message looks like, and what the signature protects from.
#ifndef TR_MMAP_MAC_HPP
#define TR_MMAP_MAC_HPP

#include "macros_off.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "blake2b.hpp"
#include "text.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

inline constexpr std::size_t secret_nbytes = 32;
inline constexpr std::size_t mac_nbytes = 16;

/// Computes the MACs of one side's messages, and counts the messages.
class Mac {
public:
    /// @param kind what that side sends, "request" or "response".
    Mac(const std::string& secret, const char* kind) : keyed_(mac_nbytes, secret, std::string("tr_mmap ") + kind) {}

    /// The smallest number above that of the last message that ``seq`` can show.
    std::uint64_t number_of(std::uint64_t seq) const {
        constexpr std::uint64_t most = wire::max_message_seq;
        return last_ + 1 + (seq + most - (last_ + 1) % most) % most;
    }

    /// The message of that number was sent or accepted.
    void note(std::uint64_t number) { last_ = number; }

    /// The MAC of a message, in hex.
    ///
    /// @param rest the members after its number, from the first comma, without the MAC.
    std::string of(std::uint64_t number, std::string_view rest) const {
        Blake2b state = keyed_;
        char bytes[sizeof number];
        for (std::size_t i = 0; i < sizeof number; ++i) bytes[i] = static_cast<char>(number >> 8 * i & 255);
        state.update({bytes, sizeof bytes});
        state.update(rest);
        const auto digest = state.finish();
        std::string text;
        for (std::size_t i = 0; i < mac_nbytes; ++i) {
            text += "0123456789abcdef"[digest[i] >> 4];
            text += "0123456789abcdef"[digest[i] & 15];
        }
        return text;
    }

private:
    Blake2b keyed_;
    std::uint64_t last_ = 0;
};

/// Signs this side's requests.
class Signer {
public:
    explicit Signer(const std::string& secret) : mac_(secret, wire::request_stem) {}

    /// The members after a request's number, as encode_rest() makes them, and the MAC. Call sent() when it was sent.
    std::string sign(std::uint32_t seq, std::string rest) const {
        rest.pop_back();  // the brace
        const std::string mac = mac_.of(mac_.number_of(seq), rest);
        return std::move(rest) + ",\"mac\":\"" + mac + "\"}";
    }
    void sent(std::uint32_t seq) { mac_.note(mac_.number_of(seq)); }

private:
    Mac mac_;
};

/// Tells which responses the worker has signed.
class Verifier {
public:
    explicit Verifier(const std::string& secret) : mac_(secret, wire::response_stem) {}

    /// Whether the worker wrote this message, and wrote it after the last one that was accepted.
    bool accept(std::string_view message) {
        constexpr std::string_view start = "{\"seq\":", key = ",\"mac\":\"", end = "\"}";
        constexpr std::size_t tail_nbytes = key.size() + 2 * mac_nbytes + end.size();
        if (message.size() < tail_nbytes || !starts_with(message, start)) return false;
        const std::size_t rest_end = message.size() - tail_nbytes;
        const std::size_t comma = message.find(',');
        if (message.substr(rest_end, key.size()) != key || message.substr(message.size() - end.size()) != end) return false;
        if (comma > rest_end) return false;
        std::uint64_t seq = 0;
        std::size_t digits = 0;
        for (const char each : message.substr(start.size(), comma - start.size())) {
            if (each == ' ' && digits == 0) continue;
            if (each < '0' || each > '9' || ++digits > 8) return false;
            seq = seq * 10 + static_cast<std::uint64_t>(each - '0');
        }
        if (seq == 0) return false;
        const std::uint64_t number = mac_.number_of(seq);
        const std::string wanted = mac_.of(number, message.substr(comma, rest_end - comma));
        const std::string_view given = message.substr(rest_end + key.size(), wanted.size());
        unsigned difference = 0;  // takes as long for any guess
        for (std::size_t i = 0; i < wanted.size(); ++i) difference |= static_cast<unsigned>(wanted[i] ^ given[i]);
        if (difference != 0) return false;
        mac_.note(number);
        return true;
    }

private:
    Mac mac_;
};

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_MAC_HPP
