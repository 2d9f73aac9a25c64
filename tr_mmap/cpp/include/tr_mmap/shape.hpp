// A tensor's sizes. Pure.
#ifndef TR_MMAP_SHAPE_HPP
#define TR_MMAP_SHAPE_HPP

#include "macros_off.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <ostream>
#include <string>
#include <type_traits>
#include <vector>

#include "errors.hpp"
#include "wire.hpp"

namespace tr {

inline constexpr int MAX_NDIM = wire::max_ndim;  // dims fill the second half of the 256-byte header

namespace detail {

// Whether a shape's text is "(4,5)", as the original framework writes it, and not "4x5". tech_renaissance.h sets it
// before main(). It is a switch for the whole program, because a user's template that prints a shape is one function in
// all files of the program, and could not do both.
inline std::atomic<bool> has_original_shape_text{false};

}  // namespace detail

/// Sizes in elements, outermost first: Shape(4, 3), Shape{4, 3}, Shape(vector); Shape() is a scalar.
class Shape {
public:
    Shape() = default;

    template <class... Sizes,
              class = std::enable_if_t<(sizeof...(Sizes) > 0) && std::conjunction_v<std::is_integral<Sizes>...>>>
    explicit Shape(Sizes... sizes) {
        static_assert(sizeof...(Sizes) <= MAX_NDIM, "a tensor has at most 16 dimensions");
        const std::int64_t all[] = {checked(sizes)...};
        assign(all, all + sizeof...(Sizes));
    }

    explicit Shape(const std::vector<std::int64_t>& sizes) { assign(sizes.data(), sizes.data() + sizes.size()); }

    int ndim() const noexcept { return ndim_; }

    /// Size of one dimension; negative counts from the innermost.
    std::int64_t dim(int index) const {
        const int position = index < 0 ? index + ndim_ : index;
        if (position < 0 || position >= ndim_) {
            throw UnsupportedTensor("a tensor of shape " + to_string() + " has no dimension " + std::to_string(index));
        }
        return sizes_[static_cast<std::size_t>(position)];
    }
    std::int64_t operator[](int index) const { return dim(index); }

    const std::int64_t* begin() const noexcept { return sizes_.data(); }
    const std::int64_t* end() const noexcept { return sizes_.data() + ndim_; }

    /// The last four sizes by the names of the original framework: batch, channels, height (rows), width (columns). One
    /// that the shape does not have is 1.
    ///
    /// @throws UnsupportedTensor the shape has more than four sizes, or that one does not fit.
    std::int32_t n() const { return size_from_last(3); }
    std::int32_t c() const { return size_from_last(2); }
    std::int32_t h() const { return size_from_last(1); }
    std::int32_t w() const { return size_from_last(0); }

    /// Number of elements.
    std::int64_t numel() const noexcept { return numel_; }
    bool is_scalar() const noexcept { return ndim_ == 0; }

    /// "4x5"; "()" for a scalar. In a program that includes tech_renaissance.h it is "(4,5)".
    std::string to_string() const {
        const bool is_original = detail::has_original_shape_text.load(std::memory_order_relaxed);
        std::string text;
        for (const std::int64_t size : *this) {
            if (!text.empty()) text += is_original ? ',' : 'x';
            text += std::to_string(size);
        }
        return is_original || text.empty() ? "(" + text + ")" : text;
    }

    friend bool operator==(const Shape& a, const Shape& b) noexcept {
        return std::equal(a.begin(), a.end(), b.begin(), b.end());
    }
    friend bool operator!=(const Shape& a, const Shape& b) noexcept { return !(a == b); }
    friend std::ostream& operator<<(std::ostream& out, const Shape& shape) { return out << shape.to_string(); }

private:
    template <class Size>
    static std::int64_t checked(Size size) {
        if constexpr (std::is_unsigned_v<Size> && sizeof(Size) >= 8) {
            if (size > static_cast<Size>(std::numeric_limits<std::int64_t>::max())) {
                throw UnsupportedTensor("a size of " + std::to_string(size) + " is beyond 2**63-1");
            }
        }
        return static_cast<std::int64_t>(size);
    }

    std::int32_t size_from_last(int index) const {
        if (ndim_ > 4) throw UnsupportedTensor("n, c, h and w name four sizes, and shape " + to_string() + " has more");
        const std::int64_t size = index < ndim_ ? dim(-1 - index) : 1;
        if (size > std::numeric_limits<std::int32_t>::max()) {
            throw UnsupportedTensor("a size of " + std::to_string(size) + " is beyond 2**31-1; use dim()");
        }
        return static_cast<std::int32_t>(size);
    }

    void assign(const std::int64_t* first, const std::int64_t* last) {
        if (last - first > MAX_NDIM) {
            throw UnsupportedTensor(std::to_string(last - first) + " dimensions, TSR holds at most " +
                                    std::to_string(MAX_NDIM));
        }
        ndim_ = static_cast<int>(last - first);
        std::copy(first, last, sizes_.begin());
        // Without the zeros: numpy and torch refuse an empty tensor too, if its other sizes overflow.
        std::int64_t extent = 1;
        numel_ = 1;
        for (const std::int64_t size : *this) {
            if (size < 0) throw UnsupportedTensor("shape " + to_string() + ", sizes are 0 or more");
            if (size == 0) numel_ = 0;
            else if (__builtin_mul_overflow(extent, size, &extent)) {
                throw UnsupportedTensor("shape " + to_string() + " is beyond 2**63-1 elements");
            }
        }
        if (numel_ != 0) numel_ = extent;
    }

    std::array<std::int64_t, MAX_NDIM> sizes_{};
    int ndim_ = 0;
    std::int64_t numel_ = 1;
};

}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_SHAPE_HPP
