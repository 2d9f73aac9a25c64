// The one table of element types: TSR code, name, size, and its C++ type. Knows nothing of tensors.
#ifndef TR_MMAP_DTYPE_HPP
#define TR_MMAP_DTYPE_HPP

#include <array>
#include <complex>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "errors.hpp"
#include "lowfloat.hpp"

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "tr_mmap maps little-endian files as they are; this machine is not little-endian"
#endif

namespace tr {

/// An element type; the values are the codes in TSR headers. Codes 1 to 8 are those of the v0 and v1 layouts.
enum class DType : std::int32_t {
    FP32 = 1,
    INT8 = 2,
    INT32 = 3,
    FP16 = 4,
    BF16 = 5,
    FP64 = 6,
    INT16 = 7,
    UINT8 = 8,
    BOOL = 9,
    INT64 = 10,
    UINT16 = 11,
    UINT32 = 12,
    UINT64 = 13,
    COMPLEX64 = 14,
    COMPLEX128 = 15,
    FP8_E4M3FN = 16,
    FP8_E5M2 = 17,
    FP8_E4M3FNUZ = 18,
    FP8_E5M2FNUZ = 19,
    FP8_E8M0FNU = 20,
};

namespace detail {

struct DTypeInfo {
    DType dtype;
    const char* label;  // as C++ users write it
    const char* name;   // as numpy (or ml_dtypes) and torch call it
    std::size_t itemsize;
};

inline constexpr std::array<DTypeInfo, 20> dtype_table = {{
    {DType::FP32, "FP32", "float32", 4},
    {DType::INT8, "INT8", "int8", 1},
    {DType::INT32, "INT32", "int32", 4},
    {DType::FP16, "FP16", "float16", 2},
    {DType::BF16, "BF16", "bfloat16", 2},
    {DType::FP64, "FP64", "float64", 8},
    {DType::INT16, "INT16", "int16", 2},
    {DType::UINT8, "UINT8", "uint8", 1},
    {DType::BOOL, "BOOL", "bool", 1},
    {DType::INT64, "INT64", "int64", 8},
    {DType::UINT16, "UINT16", "uint16", 2},
    {DType::UINT32, "UINT32", "uint32", 4},
    {DType::UINT64, "UINT64", "uint64", 8},
    {DType::COMPLEX64, "COMPLEX64", "complex64", 8},
    {DType::COMPLEX128, "COMPLEX128", "complex128", 16},
    {DType::FP8_E4M3FN, "FP8_E4M3FN", "float8_e4m3fn", 1},
    {DType::FP8_E5M2, "FP8_E5M2", "float8_e5m2", 1},
    {DType::FP8_E4M3FNUZ, "FP8_E4M3FNUZ", "float8_e4m3fnuz", 1},
    {DType::FP8_E5M2FNUZ, "FP8_E5M2FNUZ", "float8_e5m2fnuz", 1},
    {DType::FP8_E8M0FNU, "FP8_E8M0FNU", "float8_e8m0fnu", 1},
}};

inline constexpr std::int32_t max_dtype_code = static_cast<std::int32_t>(dtype_table.size());
inline constexpr std::int32_t max_dtype_code_v1 = 8;

inline const DTypeInfo& info_of(DType dtype) {
    const auto code = static_cast<std::int32_t>(dtype);
    if (code < 1 || code > max_dtype_code) throw UnsupportedTensor(std::to_string(code) + " is no TSR dtype code");
    return dtype_table[static_cast<std::size_t>(code - 1)];
}

template <class T>
struct Type {
    using type = T;
};

}  // namespace detail

/// Bytes of one element.
inline std::size_t itemsize(DType dtype) { return detail::info_of(dtype).itemsize; }

/// The name that numpy and torch have for it, "float32" say.
inline const char* dtype_name(DType dtype) { return detail::info_of(dtype).name; }

/// The name that C++ has for it, "FP32" say.
inline const char* dtype_label(DType dtype) { return detail::info_of(dtype).label; }

/// The type with that name, in either spelling.
inline DType dtype_by_name(std::string_view name) {
    for (const auto& each : detail::dtype_table) {
        if (name == each.name || name == each.label) return each.dtype;
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

#endif  // TR_MMAP_DTYPE_HPP
