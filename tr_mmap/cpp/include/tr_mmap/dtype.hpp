// Element types: looked up by code and by name, and the C++ type of each. The table, dtype_table.hpp, is generated.
// Knows nothing of tensors.
#ifndef TR_MMAP_DTYPE_HPP
#define TR_MMAP_DTYPE_HPP

#include "macros_off.hpp"

#include <complex>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "dtype_table.hpp"
#include "errors.hpp"
#include "lowfloat.hpp"

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "tr_mmap maps little-endian files as they are; this machine is not little-endian"
#endif

namespace tr {

namespace detail {

// The table has the codes in order, from 1 on.
inline constexpr std::int32_t max_dtype_code = static_cast<std::int32_t>(dtype_table.size());

inline const DTypeInfo& info_of(DType dtype) {
    const auto code = static_cast<std::int32_t>(dtype);
    if (code < 1 || code > max_dtype_code) throw UnsupportedTensor(std::to_string(code) + " is no TSR dtype code");
    return dtype_table[static_cast<std::size_t>(code - 1)];
}

template <class T>
struct Type {
    using type = T;
};

struct DTypeAlias {
    const char* name;
    DType dtype;
};

inline constexpr DType long_dtype = sizeof(long) == 8 ? DType::INT64 : DType::INT32;
inline constexpr DType ulong_dtype = sizeof(long) == 8 ? DType::UINT64 : DType::UINT32;

/// Names that numpy has besides those of the table.
inline constexpr DTypeAlias dtype_words[] = {
    {"bool_", DType::BOOL},         {"byte", DType::INT8},         {"ubyte", DType::UINT8},
    {"short", DType::INT16},        {"ushort", DType::UINT16},     {"intc", DType::INT32},
    {"uintc", DType::UINT32},       {"int", long_dtype},           {"uint", ulong_dtype},
    {"int_", long_dtype},           {"long", long_dtype},          {"ulong", ulong_dtype},
    {"intp", long_dtype},           {"uintp", ulong_dtype},        {"longlong", DType::INT64},
    {"ulonglong", DType::UINT64},   {"half", DType::FP16},         {"single", DType::FP32},
    {"double", DType::FP64},        {"float", DType::FP64},        {"float_", DType::FP64},
    {"csingle", DType::COMPLEX64},  {"cdouble", DType::COMPLEX128}, {"complex", DType::COMPLEX128},
    {"complex_", DType::COMPLEX128},
};

/// numpy's short names, before which the byte order may stand.
inline constexpr DTypeAlias dtype_codes[] = {
    {"b1", DType::BOOL},    {"i1", DType::INT8},       {"i2", DType::INT16},  {"i4", DType::INT32},
    {"i8", DType::INT64},   {"u1", DType::UINT8},      {"u2", DType::UINT16}, {"u4", DType::UINT32},
    {"u8", DType::UINT64},  {"f2", DType::FP16},       {"f4", DType::FP32},   {"f8", DType::FP64},
    {"c8", DType::COMPLEX64}, {"c16", DType::COMPLEX128}, {"?", DType::BOOL}, {"b", DType::INT8},
    {"B", DType::UINT8},    {"h", DType::INT16},       {"H", DType::UINT16},  {"i", DType::INT32},
    {"I", DType::UINT32},   {"l", long_dtype},         {"L", ulong_dtype},    {"p", long_dtype},
    {"P", ulong_dtype},     {"n", long_dtype},         {"N", ulong_dtype},    {"q", DType::INT64},
    {"Q", DType::UINT64},   {"e", DType::FP16},        {"f", DType::FP32},    {"d", DType::FP64},
    {"F", DType::COMPLEX64}, {"D", DType::COMPLEX128},
};

}  // namespace detail

/// Bytes of one element.
inline std::size_t itemsize(DType dtype) { return detail::info_of(dtype).itemsize; }

/// Its name in numpy and torch, "float32" say.
inline const char* dtype_name(DType dtype) { return detail::info_of(dtype).name; }

/// Its name in C++, "FP32" say.
inline const char* dtype_label(DType dtype) { return detail::info_of(dtype).label; }

/// The type of that name: of C++ ("FP32"), of numpy and torch ("float32"), or any other that numpy knows ("f4", "<f4",
/// "single").
///
/// @throws UnsupportedTensor there is none; or it is big-endian, because TSR stores little-endian elements and never
///     replaces the byte order that was asked for silently.
inline DType dtype_by_name(std::string_view name) {
    for (const auto& each : detail::dtype_table) {
        if (name == each.name || name == each.label) return each.dtype;
    }
    for (const auto& each : detail::dtype_words) {
        if (name == each.name) return each.dtype;
    }
    const bool has_order = !name.empty() && std::string_view("<>=|").find(name[0]) != std::string_view::npos;
    for (const auto& each : detail::dtype_codes) {
        if (name.substr(has_order ? 1 : 0) != each.name) continue;
        if (name[0] == '>' && itemsize(each.dtype) > 1) {
            throw UnsupportedTensor("\"" + std::string(name) + "\" is big-endian, and TSR is little-endian; ask for \"" +
                                    dtype_name(each.dtype) + "\"");
        }
        return each.dtype;
    }
    throw UnsupportedTensor("\"" + std::string(name) + "\" is no TSR dtype");
}

/// Call ``f(detail::Type<T>{})`` with the C++ type of a dtype.
template <class F>
decltype(auto) with_type(DType dtype, F&& f) {
    using detail::Type;
    switch (dtype) {
        case DType::FP32: return f(Type<float>{});
        case DType::INT8: return f(Type<std::int8_t>{});
        case DType::INT32: return f(Type<std::int32_t>{});
        case DType::FP16: return f(Type<half>{});
        case DType::BF16: return f(Type<bfloat16>{});
        case DType::FP64: return f(Type<double>{});
        case DType::INT16: return f(Type<std::int16_t>{});
        case DType::UINT8: return f(Type<std::uint8_t>{});
        case DType::BOOL: return f(Type<bool>{});
        case DType::INT64: return f(Type<std::int64_t>{});
        case DType::UINT16: return f(Type<std::uint16_t>{});
        case DType::UINT32: return f(Type<std::uint32_t>{});
        case DType::UINT64: return f(Type<std::uint64_t>{});
        case DType::COMPLEX64: return f(Type<std::complex<float>>{});
        case DType::COMPLEX128: return f(Type<std::complex<double>>{});
        case DType::FP8_E4M3FN: return f(Type<float8_e4m3fn>{});
        case DType::FP8_E5M2: return f(Type<float8_e5m2>{});
        case DType::FP8_E4M3FNUZ: return f(Type<float8_e4m3fnuz>{});
        case DType::FP8_E5M2FNUZ: return f(Type<float8_e5m2fnuz>{});
        case DType::FP8_E8M0FNU: return f(Type<float8_e8m0fnu>{});
    }
    throw UnsupportedTensor(std::to_string(static_cast<std::int32_t>(dtype)) + " is no TSR dtype code");
}

namespace detail {

template <class T>
constexpr DType integer_dtype() {
    if constexpr (std::is_signed_v<T>) {
        return sizeof(T) == 1   ? DType::INT8
               : sizeof(T) == 2 ? DType::INT16
               : sizeof(T) == 4 ? DType::INT32
                                : DType::INT64;
    } else {
        return sizeof(T) == 1   ? DType::UINT8
               : sizeof(T) == 2 ? DType::UINT16
               : sizeof(T) == 4 ? DType::UINT32
                                : DType::UINT64;
    }
}

template <class T>
constexpr bool is_low_float = false;
template <class Format>
constexpr bool is_low_float<LowFloat<Format>> = true;

}  // namespace detail

/// The dtype of a C++ type: float, double, bool, any integer, std::complex, tr::half, tr::bfloat16, tr::float8_….
template <class T>
constexpr DType dtype_of() {
    using U = std::remove_cv_t<T>;
    if constexpr (std::is_same_v<U, float>) return DType::FP32;
    else if constexpr (std::is_same_v<U, double>) return DType::FP64;
    else if constexpr (std::is_same_v<U, bool>) return DType::BOOL;
    else if constexpr (std::is_same_v<U, half>) return DType::FP16;
    else if constexpr (std::is_same_v<U, bfloat16>) return DType::BF16;
    else if constexpr (std::is_same_v<U, std::complex<float>>) return DType::COMPLEX64;
    else if constexpr (std::is_same_v<U, std::complex<double>>) return DType::COMPLEX128;
    else if constexpr (std::is_same_v<U, float8_e4m3fn>) return DType::FP8_E4M3FN;
    else if constexpr (std::is_same_v<U, float8_e5m2>) return DType::FP8_E5M2;
    else if constexpr (std::is_same_v<U, float8_e4m3fnuz>) return DType::FP8_E4M3FNUZ;
    else if constexpr (std::is_same_v<U, float8_e5m2fnuz>) return DType::FP8_E5M2FNUZ;
    else if constexpr (std::is_same_v<U, float8_e8m0fnu>) return DType::FP8_E8M0FNU;
    else {
        static_assert(std::is_integral_v<U> && sizeof(U) <= 8, "this C++ type has no TSR dtype");
        return detail::integer_dtype<U>();
    }
}

static_assert(sizeof(bool) == 1, "a TSR bool is one byte");

}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_DTYPE_HPP
