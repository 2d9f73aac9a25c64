// Which texts may name a tensor, a session, a segment, a long message or a doorbell. Checks the text only.
//
// The rules are those of tr_mmap/base/identifiers.py: what one side makes, the other must accept.
#ifndef TR_MMAP_IDENTIFIERS_HPP
#define TR_MMAP_IDENTIFIERS_HPP

#include "macros_off.hpp"

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

#include "errors.hpp"
#include "text.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

inline bool is_letter_or_digit(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

/// 1 to ``max_length`` letters, digits, and characters of ``punctuation``.
inline bool has_only(std::string_view text, std::string_view punctuation, std::size_t max_length) {
    return !text.empty() && text.size() <= max_length && std::all_of(text.begin(), text.end(), [=](char c) {
        return is_letter_or_digit(c) || punctuation.find(c) != std::string_view::npos;
    });
}

/// 1 to ``max_length`` letters, digits, '_', '-' and '.', not beginning with a dot.
inline bool is_plain_name(std::string_view name, std::size_t max_length) {
    return has_only(name, wire::name_punctuation, max_length) && name[0] != '.';
}

inline bool is_session_id(std::string_view text) { return is_plain_name(text, wire::max_session_id_length); }

/// Whether it may be the file name of a segment.
inline bool is_segment_name(std::string_view name) {
    return is_plain_name(between(name, "", wire::tensor_suffix), wire::max_segment_name_length);
}

/// Whether it is the file name of a worker's result: result_<number>.tsr.
inline bool is_result_name(std::string_view name) {
    return is_all_digits(between(name, std::string(wire::result_prefix) + "_", wire::tensor_suffix));
}

/// Whether it is the file name of a long message: <stem>.<token>.spill.
///
/// @param stem wire::request_stem or wire::response_stem: the side that wrote the message.
inline bool is_spill_name(std::string_view name, std::string_view stem) {
    const std::string start = std::string(stem) + ".";
    return has_only(between(name, start, wire::spill_suffix), "_", wire::max_spill_token_length);
}

/// Whether it may name a doorbell. So no manifest can make us remove another program's semaphores.
inline bool is_doorbell_name(std::string_view name) {
    return has_only(between(name, wire::doorbell_prefix, ""), wire::name_punctuation, wire::max_doorbell_length);
}

inline std::string name_rule(std::size_t max_length) {
    return "1 to " + std::to_string(max_length) +
           " characters, letters, digits, '_', '-' and '.', not beginning with a dot";
}

/// Refuse what may not name a tensor.
///
/// @throws BadTag too long, empty, other characters, or of the form that the library names its own files.
inline void check_tag(const std::string& tag) {
    if (!is_plain_name(tag, wire::max_tag_length)) {
        const std::string shown = tag.substr(0, wire::max_tag_length);
        throw BadTag("'" + shown + "' is no tag: " + name_rule(wire::max_tag_length), shown);
    }
    bool is_own = false;
    for (const char* prefix : {wire::result_prefix, wire::segment_prefix, wire::given_file_prefix}) {
        is_own |= is_all_digits(between(tag, std::string(prefix) + "_", ""));
    }
    const std::string numbers(between(tag, wire::given_prefix, ""));
    const std::size_t first = numbers.find('_');
    is_own |= first != std::string::npos && is_all_digits(numbers.substr(0, first)) &&
              is_all_digits(numbers.substr(first + 1));
    if (is_own) throw BadTag("the tag '" + tag + "' is one of the library's own names; choose another", tag);
}

/// Refuse what may not name a session.
///
/// @throws BadMessage too long, empty, or other characters.
inline void check_session_id(const std::string& session_id) {
    if (!is_session_id(session_id)) {
        const std::string shown = session_id.substr(0, wire::max_session_id_length);
        throw BadMessage("'" + shown + "' is no session id: " + name_rule(wire::max_session_id_length), "session_id");
    }
}

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_IDENTIFIERS_HPP
