// Tensors as text. Included by tensor.hpp.
#ifndef TR_MMAP_PRINT_HPP
#define TR_MMAP_PRINT_HPP

#include "macros_off.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iostream>
#include <string>
#include <type_traits>

#include "numbers.hpp"
#include "tensor.hpp"

namespace tr {
namespace detail {

inline constexpr std::int64_t max_printed = 1000;  // elements; numpy's threshold
inline constexpr std::int64_t printed_edge = 3;    // of each dimension where there are more

inline std::string real_text(double value, int precision) {
    std::string result = format_real(value, 'g', precision < 1 ? 1 : precision > 17 ? 17 : precision);
    if (std::isfinite(value) && result.find_first_of(".e") == std::string::npos) result += ".0";
    return result;
}

template <class T>
std::string element_text(const T& value, int precision) {
    if constexpr (std::is_integral_v<T>) {
        return std::to_string(value);
    } else if constexpr (std::is_floating_point_v<T> || is_low_float<T>) {
        return real_text(static_cast<double>(value), precision);
    } else {
        const std::string imaginary = real_text(static_cast<double>(value.imag()), precision);
        return real_text(static_cast<double>(value.real()), precision) + (imaginary[0] == '-' ? "" : "+") + imaginary +
               "i";
    }
}

template <class T>
void append_elements(std::string& out, const Tensor& tensor, int axis, std::int64_t first, std::int64_t span,
                     int precision) {
    if (axis == tensor.ndim()) {
        if constexpr (std::is_same_v<T, bool>) {
            out += tensor.data<std::byte>()[first] != std::byte{0} ? "true" : "false";
        } else {
            out += element_text(tensor.data<T>()[first], precision);
        }
        return;
    }
    const std::int64_t size = tensor.shape()[axis];
    const bool is_cut = tensor.numel() > max_printed && size > 2 * printed_edge;
    const bool is_row = axis == tensor.ndim() - 1;
    const std::string gap = is_row ? ", " : ",\n" + std::string(static_cast<std::size_t>(axis) + 1, ' ');
    out += '[';
    for (std::int64_t i = 0; i < size; ++i) {
        if (i > 0) out += gap;
        if (is_cut && i == printed_edge) {
            out += "..." + gap;
            i = size - printed_edge;
        }
        append_elements<T>(out, tensor, axis + 1, first + i * (span / size), span / size, precision);
    }
    out += ']';
}

}  // namespace detail

inline std::string Tensor::to_string(int precision) const {
    std::string out;
    if (numel() == 0) return "[]";
    with_type(dtype_, [&](auto type) {
        detail::append_elements<typename decltype(type)::type>(out, *this, 0, 0, numel(), precision);
    });
    return out;
}

inline void Tensor::print(const std::string& name, int precision) const {
    std::cout << (name.empty() ? "" : name + ": ") << shape_ << ' ' << dtype_label(dtype_) << '\n'
              << to_string(precision) << std::endl;
}

inline std::ostream& operator<<(std::ostream& out, const Tensor& tensor) { return out << tensor.to_string(); }

}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_PRINT_HPP
