// JSON, as much as control messages and manifests need: values, a strict parser, a writer of strings. Pure.
#ifndef TR_MMAP_JSON_HPP
#define TR_MMAP_JSON_HPP

#include "macros_off.hpp"

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

#include "errors.hpp"
#include "numbers.hpp"

namespace tr {
namespace json {

class Value;
using Array = std::vector<Value>;
using Object = std::vector<std::pair<std::string, Value>>;  // in order; no key twice

/// One JSON value. Integers keep all their 64 bits.
class Value {
public:
    using Data = std::variant<std::nullptr_t, bool, std::int64_t, std::uint64_t, double, std::string, Array, Object>;
    Data data = nullptr;

    template <class T>
    bool is() const {
        return std::holds_alternative<T>(data);
    }
    template <class T>
    const T* get() const {
        return std::get_if<T>(&data);
    }
    bool is_null() const { return is<std::nullptr_t>(); }

    /// The member of that name; null if there is none, or this is no object.
    const Value* find(std::string_view key) const {
        if (const auto* object = get<Object>()) {
            for (const auto& each : *object) {
                if (each.first == key) return &each.second;
            }
        }
        return nullptr;
    }
};

namespace detail {

inline constexpr int max_depth = 64;

[[noreturn]] inline void fail(const std::string& what, std::size_t at) {
    const std::string detail = what + " at byte " + std::to_string(at);
    throw BadMessage("the JSON text cannot be read: " + detail, detail);
}

/// Length of the UTF-8 character that begins there; 0 if none does. Refuses surrogates and overlong forms.
inline std::size_t utf8_length(std::string_view text, std::size_t at) {
    const auto byte = [&](std::size_t i) {
        return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0u;
    };
    const auto follows = [&](std::size_t i, unsigned low = 0x80, unsigned high = 0xbf) {
        return byte(i) >= low && byte(i) <= high;
    };
    const unsigned first = byte(0);
    if (first < 0x80) return 1;
    if (first >= 0xc2 && first <= 0xdf) return follows(1) ? 2 : 0;
    if (first == 0xe0) return follows(1, 0xa0) && follows(2) ? 3 : 0;
    if (first == 0xed) return follows(1, 0x80, 0x9f) && follows(2) ? 3 : 0;
    if (first >= 0xe1 && first <= 0xef) return follows(1) && follows(2) ? 3 : 0;
    if (first == 0xf0) return follows(1, 0x90) && follows(2) && follows(3) ? 4 : 0;
    if (first == 0xf4) return follows(1, 0x80, 0x8f) && follows(2) && follows(3) ? 4 : 0;
    if (first >= 0xf1 && first <= 0xf3) return follows(1) && follows(2) && follows(3) ? 4 : 0;
    return 0;
}

class Parser {
public:
    explicit Parser(std::string_view text) : text_(text) {}

    Value document() {
        Value value = any(0);
        skip_space();
        if (at_ != text_.size()) fail("something follows the value", at_);
        return value;
    }

private:
    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
    void skip_space() {
        while (at_ < text_.size() && (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r')) ++at_;
    }
    bool take(char wanted) {
        if (at_ >= text_.size() || text_[at_] != wanted) return false;
        ++at_;
        return true;
    }
    void expect(std::string_view word) {
        if (text_.substr(at_, word.size()) != word) fail("no JSON value", at_);
        at_ += word.size();
    }

    Value any(int depth) {
        if (depth > max_depth) fail("too deeply nested", at_);
        skip_space();
        switch (peek()) {
            case '{': return Value{object(depth)};
            case '[': return Value{array(depth)};
            case '"': return Value{string()};
            case 't': expect("true"); return Value{true};
            case 'f': expect("false"); return Value{false};
            case 'n': expect("null"); return Value{nullptr};
            default: return number();
        }
    }

    Object object(int depth) {
        Object result;
        std::unordered_set<std::string> keys;
        take('{');
        skip_space();
        if (take('}')) return result;
        do {
            skip_space();
            if (peek() != '"') fail("no key", at_);
            std::string key = string();
            if (!keys.insert(key).second) fail("a key is given twice, the second time", at_);  // one text, one meaning
            skip_space();
            if (!take(':')) fail("no colon", at_);
            result.emplace_back(std::move(key), any(depth + 1));
            skip_space();
        } while (take(','));
        if (!take('}')) fail("an object does not end", at_);
        return result;
    }

    Array array(int depth) {
        Array result;
        take('[');
        skip_space();
        if (take(']')) return result;
        do {
            result.push_back(any(depth + 1));
            skip_space();
        } while (take(','));
        if (!take(']')) fail("an array does not end", at_);
        return result;
    }

    Value number() {
        const std::size_t start = at_;
        const bool is_negative = take('-');
        const auto digits = [&] {
            const std::size_t before = at_;
            while (peek() >= '0' && peek() <= '9') ++at_;
            return at_ - before;
        };
        const std::size_t first = at_;
        const std::size_t count = digits();
        if (count == 0 || (count > 1 && text_[first] == '0')) fail("no JSON value", start);
        bool is_integer = true;
        if (take('.')) {
            is_integer = false;
            if (digits() == 0) fail("a number ends with its point", at_);
        }
        if (take('e') || take('E')) {
            is_integer = false;
            if (!take('+')) take('-');
            if (digits() == 0) fail("a number ends with its exponent", at_);
        }
        if (is_integer) {
            std::uint64_t size = 0;
            bool fits = true;
            for (std::size_t i = first; i < at_ && fits; ++i) {
                fits = !__builtin_mul_overflow(size, std::uint64_t{10}, &size) &&
                       !__builtin_add_overflow(size, static_cast<std::uint64_t>(text_[i] - '0'), &size);
            }
            constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
            if (fits && !is_negative && size > most) return Value{size};
            if (fits && size <= most) {
                const auto value = static_cast<std::int64_t>(size);
                return Value{is_negative ? -value : value};
            }
            if (fits && is_negative && size == most + 1) return Value{std::numeric_limits<std::int64_t>::min()};
        }
        return Value{tr::detail::real_of(text_.substr(start, at_ - start))};
    }

    unsigned hex4() {
        unsigned value = 0;
        for (int i = 0; i < 4; ++i, ++at_) {
            const char c = peek();
            value = value * 16;
            if (c >= '0' && c <= '9') value += static_cast<unsigned>(c - '0');
            else if (c >= 'a' && c <= 'f') value += static_cast<unsigned>(c - 'a' + 10);
            else if (c >= 'A' && c <= 'F') value += static_cast<unsigned>(c - 'A' + 10);
            else fail("an escape has no four digits", at_);
        }
        return value;
    }

    void escape(std::string& out) {
        const char kind = peek();
        ++at_;
        switch (kind) {
            case '"': case '\\': case '/': out += kind; return;
            case 'b': out += '\b'; return;
            case 'f': out += '\f'; return;
            case 'n': out += '\n'; return;
            case 'r': out += '\r'; return;
            case 't': out += '\t'; return;
            case 'u': break;
            default: fail("an unknown escape", at_);
        }
        std::uint32_t code = hex4();
        if (code >= 0xd800 && code < 0xdc00) {
            if (!take('\\') || !take('u')) fail("half a surrogate pair", at_);
            const std::uint32_t low = hex4();
            if (low < 0xdc00 || low > 0xdfff) fail("half a surrogate pair", at_);
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        } else if (code >= 0xdc00 && code <= 0xdfff) {
            fail("half a surrogate pair", at_);
        }
        const auto put = [&](std::uint32_t byte) { out += static_cast<char>(byte); };
        if (code < 0x80) put(code);
        else if (code < 0x800) put(0xc0 | code >> 6), put(0x80 | (code & 0x3f));
        else if (code < 0x10000) put(0xe0 | code >> 12), put(0x80 | (code >> 6 & 0x3f)), put(0x80 | (code & 0x3f));
        else {
            put(0xf0 | code >> 18), put(0x80 | (code >> 12 & 0x3f)), put(0x80 | (code >> 6 & 0x3f));
            put(0x80 | (code & 0x3f));
        }
    }

    std::string string() {
        std::string out;
        take('"');
        while (!take('"')) {
            if (at_ >= text_.size()) fail("a string does not end", at_);
            if (static_cast<unsigned char>(peek()) < 0x20) fail("a bare control character", at_);
            if (take('\\')) {
                escape(out);
                continue;
            }
            const std::size_t length = utf8_length(text_, at_);
            if (length == 0) fail("no UTF-8", at_);
            out.append(text_, at_, length);
            at_ += length;
        }
        return out;
    }

    std::string_view text_;
    std::size_t at_ = 0;
};

}  // namespace detail

/// Parse one value that fills the text.
///
/// @throws BadMessage it is not JSON.
inline Value parse(std::string_view text) { return detail::Parser(text).document(); }

/// Append a string in quotes.
///
/// @throws BadMessage it is not UTF-8, and so no JSON text can hold it.
inline void append_string(std::string& out, std::string_view text) {
    out += '"';
    for (std::size_t at = 0; at < text.size();) {
        const auto c = static_cast<unsigned char>(text[at]);
        if (c == '"' || c == '\\') {
            out += '\\';
            out += static_cast<char>(c);
            ++at;
        } else if (c < 0x20) {
            char escape[8];
            std::snprintf(escape, sizeof escape, "\\u%04x", c);
            out += escape;
            ++at;
        } else {
            const std::size_t length = detail::utf8_length(text, at);
            if (length == 0) {
                throw BadMessage("the text cannot be sent: it is not UTF-8 at byte " + std::to_string(at), "not UTF-8");
            }
            out.append(text, at, length);
            at += length;
        }
    }
    out += '"';
}

}  // namespace json
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_JSON_HPP
