// Real numbers to and from text, in the C locale whatever the program's locale is. Pure.
//
// printf and strtod use the decimal point of the program's locale, a comma say; the control messages never do.
#ifndef TR_MMAP_NUMBERS_HPP
#define TR_MMAP_NUMBERS_HPP

#include "macros_off.hpp"

#include <locale.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

namespace tr {
namespace detail {

/// Gives this thread the C locale for a scope. (from_chars and to_chars of real numbers are not in every C++17.)
class CLocale {
public:
    CLocale() : previous_(::uselocale(c_locale())) {}
    CLocale(const CLocale&) = delete;
    CLocale& operator=(const CLocale&) = delete;
    ~CLocale() { ::uselocale(previous_); }

private:
    static locale_t c_locale() {
        static const locale_t only = ::newlocale(LC_ALL_MASK, "C", nullptr);  // never freed
        return only;
    }
    locale_t previous_;
};

/// The value of a JSON number; infinity if it is too large.
inline double real_of(std::string_view text) {
    const CLocale c_locale;
    return std::strtod(std::string(text).c_str(), nullptr);
}

/// printf's ``%.<precision><format>`` of a number.
///
/// @param format 'e', 'f' or 'g'.
inline std::string format_real(double number, char format, int precision) {
    const CLocale c_locale;
    char text[400];  // %f of the largest double has 309 digits before the point
    const char* pattern = format == 'e' ? "%.*e" : format == 'f' ? "%.*f" : "%.*g";
    const int length = std::snprintf(text, sizeof text, pattern, std::clamp(precision, 0, 40), number);
    return std::string(text, static_cast<std::size_t>(std::max(length, 0)));
}

/// A number as Python's str() writes it: the fewest digits that read back the same, and always a point or an exponent.
inline std::string real_word(double number) {
    if (std::isnan(number)) return "nan";
    if (std::isinf(number)) return number > 0 ? "inf" : "-inf";
    std::string scientific;
    int digits = 0;
    do scientific = format_real(number, 'e', digits++);
    while (real_of(scientific) != number && digits < 17);
    const int exponent = std::atoi(scientific.c_str() + scientific.find('e') + 1);
    if (exponent < -4 || exponent >= 16) return scientific;
    return format_real(number, 'f', std::max(1, digits - 1 - exponent));
}

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_NUMBERS_HPP
