// Floating point formats of 8 and 16 bits: their bits, to and from float. Pure arithmetic.
#ifndef TR_MMAP_LOWFLOAT_HPP
#define TR_MMAP_LOWFLOAT_HPP

#include "macros_off.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace tr {
namespace detail {

/// Which codes of a format are not numbers.
enum class Specials {
    IEEE,  // the largest exponent holds infinities and NaNs
    FN,    // finite: only all ones is NaN
    FNUZ,  // finite, and no negative zero: only the sign bit alone is NaN
};

template <int ExponentBits, int MantissaBits, int Bias, Specials Kind>
struct LowFloatFormat {
    static constexpr int total_bits = 1 + ExponentBits + MantissaBits;
    static constexpr unsigned sign_bit = 1u << (total_bits - 1);
    static constexpr unsigned largest_exponent = (1u << ExponentBits) - 1;
    static constexpr unsigned infinity = largest_exponent << MantissaBits;  // IEEE only

    static float decode(unsigned bits) {
        const unsigned magnitude = bits & (sign_bit - 1);
        const unsigned exponent = magnitude >> MantissaBits;
        const unsigned mantissa = magnitude & ((1u << MantissaBits) - 1);
        const float sign = (bits & sign_bit) ? -1.0f : 1.0f;
        if (Kind == Specials::FNUZ && bits == sign_bit) return std::numeric_limits<float>::quiet_NaN();
        if (Kind == Specials::FN && magnitude == sign_bit - 1) {
            return std::copysign(std::numeric_limits<float>::quiet_NaN(), sign);
        }
        if (Kind == Specials::IEEE && exponent == largest_exponent) {
            return mantissa ? std::copysign(std::numeric_limits<float>::quiet_NaN(), sign)
                            : sign * std::numeric_limits<float>::infinity();
        }
        const unsigned significand = exponent ? mantissa | (1u << MantissaBits) : mantissa;
        const int scale = (exponent ? static_cast<int>(exponent) : 1) - Bias - MantissaBits;
        return sign * std::ldexp(static_cast<float>(significand), scale);
    }

    /// To the nearest, ties to even; what is too large becomes infinity, or NaN where there is none.
    static unsigned encode(float value) {
        const unsigned sign = std::signbit(value) ? sign_bit : 0;
        const unsigned nan = Kind == Specials::IEEE   ? sign | infinity | (1u << (MantissaBits - 1))
                             : Kind == Specials::FN ? sign | (sign_bit - 1)
                                                    : sign_bit;
        if (std::isnan(value)) return nan;
        const unsigned overflow = Kind == Specials::IEEE ? sign | infinity : nan;
        if (std::isinf(value)) return overflow;
        const double size = std::fabs(static_cast<double>(value));
        if (size == 0) return Kind == Specials::FNUZ ? 0 : sign;
        int exponent = 0;
        std::frexp(size, &exponent);
        exponent -= 1;  // size is in [2**exponent, 2**(exponent + 1))
        if (exponent < 1 - Bias) exponent = 1 - Bias;
        // Exact in double, apart from the rounding. A carry out of the mantissa adds 1 to the exponent.
        const double quanta = std::nearbyint(std::ldexp(size, MantissaBits - exponent));
        const long long code = (static_cast<long long>(exponent + Bias) << MantissaBits) +
                               static_cast<long long>(quanta) - (1ll << MantissaBits);
        const long long most = Kind == Specials::IEEE ? infinity - 1
                               : Kind == Specials::FN ? sign_bit - 2
                                                      : sign_bit - 1;
        if (code > most) return overflow;
        if (code == 0) return Kind == Specials::FNUZ ? 0 : sign;
        return sign | static_cast<unsigned>(code);
    }
};

/// float8_e8m0fnu: a power of two from 2**-127 to 2**127 and nothing else; all ones is NaN.
struct PowerFormat {
    static constexpr int total_bits = 8;

    static float decode(unsigned bits) {
        return bits == 0xff ? std::numeric_limits<float>::quiet_NaN() : std::ldexp(1.0f, static_cast<int>(bits) - 127);
    }

    static unsigned encode(float value) {
        if (!(value > 0) || std::isinf(value)) return 0xff;  // there is no zero, no sign and no infinity
        std::uint32_t bits;
        std::memcpy(&bits, &value, 4);
        // The exponent, rounded to the nearest by the mantissa and ties upwards, as ml_dtypes and torch do.
        const std::uint32_t exponent = bits >> 23;
        const std::uint32_t mantissa = bits & 0x7fffff;
        return exponent + (mantissa > 0x400000 || (mantissa == 0x400000 && exponent > 0));
    }
};

}  // namespace detail

/// A number of 8 or 16 bits that converts to and from float.
template <class Format>
struct LowFloat {
    using Bits = std::conditional_t<Format::total_bits == 8, std::uint8_t, std::uint16_t>;
    Bits bits = 0;

    LowFloat() = default;
    explicit LowFloat(float value) : bits(static_cast<Bits>(Format::encode(value))) {}
    operator float() const { return Format::decode(bits); }  // NOLINT(google-explicit-constructor): widening loses nothing
    static LowFloat from_bits(Bits bits) {
        LowFloat result;
        result.bits = bits;
        return result;
    }
};

using half = LowFloat<detail::LowFloatFormat<5, 10, 15, detail::Specials::IEEE>>;
using bfloat16 = LowFloat<detail::LowFloatFormat<8, 7, 127, detail::Specials::IEEE>>;
using float8_e4m3fn = LowFloat<detail::LowFloatFormat<4, 3, 7, detail::Specials::FN>>;
using float8_e5m2 = LowFloat<detail::LowFloatFormat<5, 2, 15, detail::Specials::IEEE>>;
using float8_e4m3fnuz = LowFloat<detail::LowFloatFormat<4, 3, 8, detail::Specials::FNUZ>>;
using float8_e5m2fnuz = LowFloat<detail::LowFloatFormat<5, 2, 16, detail::Specials::FNUZ>>;
using float8_e8m0fnu = LowFloat<detail::PowerFormat>;

}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_LOWFLOAT_HPP
