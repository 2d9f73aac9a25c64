// Looking at text: spaces, digits, how it begins and ends. Pure.
#ifndef TR_MMAP_TEXT_HPP
#define TR_MMAP_TEXT_HPP

#include "macros_off.hpp"

#include <cstddef>
#include <string_view>

namespace tr {
namespace detail {

inline bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/// The text without the spaces around it.
inline std::string_view strip(std::string_view text) {
    while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
    while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
    return text;
}

inline bool is_all_digits(std::string_view text) {
    return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

inline bool starts_with(std::string_view text, std::string_view start) { return text.substr(0, start.size()) == start; }

inline bool ends_with(std::string_view text, std::string_view end) {
    return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

/// The part of a text between ``start`` and ``end``; "" if the text does not begin and end so.
inline std::string_view between(std::string_view text, std::string_view start, std::string_view end) {
    if (text.size() < start.size() + end.size() || !starts_with(text, start) || !ends_with(text, end)) return {};
    return text.substr(start.size(), text.size() - start.size() - end.size());
}

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_TEXT_HPP
