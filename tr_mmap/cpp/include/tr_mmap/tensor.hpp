// Tensors in memory: owned, or a view of mapped bytes. Never opens files, never knows of sessions.
#ifndef TR_MMAP_TENSOR_HPP
#define TR_MMAP_TENSOR_HPP

#include "macros_off.hpp"

#include <cmath>
#include <complex>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <ostream>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "dtype.hpp"
#include "errors.hpp"
#include "numbers.hpp"
#include "shape.hpp"

namespace tr {

/// Where a tensor lives. There is only the CPU; the parameter is kept for programs that name it.
struct Device {
    std::string to_string() const { return "CPU"; }
    friend constexpr bool operator==(Device, Device) noexcept { return true; }
    friend constexpr bool operator!=(Device, Device) noexcept { return false; }
};
inline constexpr Device CPU{};

namespace detail {

class LoanStorage;

/// Bytes that a tensor and its copies share; released with the last of them.
class Storage {
public:
    Storage() = default;
    Storage(const Storage&) = delete;
    Storage& operator=(const Storage&) = delete;
    virtual ~Storage() = default;

    /// The elements. If not is_writable(), a store to them is SIGSEGV: the pages are mapped read-only.
    virtual std::byte* data() = 0;
    virtual bool is_writable() const noexcept = 0;
    /// This, if it is the memory of a loan; else null. (Not dynamic_cast: programs are built with -fno-rtti too.)
    virtual LoanStorage* as_loan() noexcept { return nullptr; }
};

class OwnedStorage final : public Storage {
public:
    explicit OwnedStorage(std::size_t nbytes)
        : data_(static_cast<std::byte*>(::operator new(nbytes, std::align_val_t{alignment}))) {}
    ~OwnedStorage() override { ::operator delete(data_, std::align_val_t{alignment}); }
    std::byte* data() override { return data_; }
    bool is_writable() const noexcept override { return true; }

private:
    static constexpr std::size_t alignment = 64;  // a cache line, and AVX-512
    std::byte* data_;
};

/// Bytes of a tensor.
///
/// @throws UnsupportedTensor more than a machine can address.
inline std::size_t nbytes_of(const Shape& shape, DType dtype) {
    std::int64_t extent = static_cast<std::int64_t>(itemsize(dtype));
    for (const std::int64_t size : shape) {
        if (size != 0 && __builtin_mul_overflow(extent, size, &extent)) {
            throw UnsupportedTensor("shape " + shape.to_string() + " of " + dtype_name(dtype) +
                                    " is beyond 2**63-1 bytes");
        }
    }
    return shape.numel() == 0 ? 0 : static_cast<std::size_t>(extent);
}

template <class V>
std::string text_of_number(V value) {
    if constexpr (std::is_floating_point_v<V>) return real_word(static_cast<double>(value));
    else return std::to_string(value);
}

/// Convert a value to an element.
///
/// @throws UnsupportedTensor the element type cannot hold it.
template <class T, class V>
T to_element(V value) {
    static_assert(std::is_arithmetic_v<V>);
    if constexpr (std::is_same_v<T, bool>) {
        return value != V{};
    } else if constexpr (std::is_integral_v<T>) {
        bool fits = true;
        if constexpr (std::is_floating_point_v<V>) {
            const V beyond = std::ldexp(V{1}, std::numeric_limits<T>::digits);
            fits = value == std::trunc(value) && value < beyond && value >= (std::is_signed_v<T> ? -beyond : V{0});
        } else if constexpr (std::is_signed_v<V>) {
            if constexpr (std::is_signed_v<T>) {
                fits = value >= std::numeric_limits<T>::min() && value <= std::numeric_limits<T>::max();
            } else {
                fits = value >= 0 && static_cast<std::make_unsigned_t<V>>(value) <= std::numeric_limits<T>::max();
            }
        } else {
            fits = static_cast<std::uint64_t>(value) <= static_cast<std::uint64_t>(std::numeric_limits<T>::max());
        }
        if (!fits) {
            throw UnsupportedTensor(text_of_number(value) + " is no value of " + dtype_name(dtype_of<T>()));
        }
        return static_cast<T>(value);
    } else if constexpr (is_low_float<T>) {
        return T(static_cast<float>(value));
    } else if constexpr (std::is_floating_point_v<T>) {
        return static_cast<T>(value);
    } else {
        return T(static_cast<typename T::value_type>(value));
    }
}

}  // namespace detail

/// One tensor, contiguous in C order. Copying it shares the elements; clone() copies them.
///
/// A tensor that was received or loaded, and a loan that was sent, is *read-only*, because others read its elements.
/// The elements are mapped so that a store to them is SIGSEGV, and never reaches another process. is_writable() says
/// whether a tensor may be written, mutable_data() throws if not, and clone() makes a tensor that can be written.
class Tensor {
public:
    /// A tensor without elements: of shape (0).
    Tensor() : shape_(0) {}

    Tensor(const Tensor&) = default;
    Tensor& operator=(const Tensor&) = default;
    /// The moved-from tensor has no elements afterwards.
    Tensor(Tensor&& other) noexcept : Tensor() { swap(other); }
    Tensor& operator=(Tensor&& other) noexcept {
        Tensor taken(std::move(other));  // so that moving a tensor into itself keeps it
        swap(taken);
        return *this;
    }
    ~Tensor() = default;

    void swap(Tensor& other) noexcept {
        std::swap(shape_, other.shape_);
        std::swap(dtype_, other.dtype_);
        storage_.swap(other.storage_);
    }
    friend void swap(Tensor& a, Tensor& b) noexcept { a.swap(b); }

    /// For the library: a tensor over a storage, which holds the elements (null if there are none).
    Tensor(Shape shape, DType dtype, std::shared_ptr<detail::Storage> storage)
        : shape_(shape), dtype_(dtype), storage_(std::move(storage)) {}

    /// Of undefined content.
    static Tensor empty(const Shape& shape, DType dtype = DType::FP32, Device = CPU) {
        const std::size_t nbytes = detail::nbytes_of(shape, dtype);
        return Tensor(shape, dtype, nbytes == 0 ? nullptr : std::make_shared<detail::OwnedStorage>(nbytes));
    }

    /// Every element is ``value``.
    template <class V>
    static Tensor full(const Shape& shape, V value, DType dtype = DType::FP32, Device = CPU) {
        Tensor result = empty(shape, dtype);
        result.fill(value);
        return result;
    }

    static Tensor zeros(const Shape& shape, DType dtype = DType::FP32, Device = CPU) {
        Tensor result = empty(shape, dtype);
        if (result.storage_) std::memset(result.storage_->data(), 0, result.nbytes());
        return result;
    }

    static Tensor ones(const Shape& shape, DType dtype = DType::FP32, Device = CPU) { return full(shape, 1, dtype); }

    /// Normally distributed, mean 0, deviation 1; the same seed gives the same tensor.
    static Tensor randn(const Shape& shape, std::uint64_t seed, DType dtype = DType::FP32, Device = CPU) {
        Tensor result = empty(shape, dtype);
        std::mt19937_64 source(seed);
        std::normal_distribution<double> normal;
        with_type(dtype, [&](auto type) {
            using T = typename decltype(type)::type;
            if constexpr (std::is_integral_v<T>) {
                throw UnsupportedTensor("randn makes real and complex numbers, not " + std::string(dtype_name(dtype)));
            } else {
                T* elements = result.data<T>();
                for (std::int64_t i = 0; i < result.numel(); ++i) elements[i] = detail::to_element<T>(normal(source));
            }
        });
        return result;
    }
    static Tensor randn(const Shape& shape, DType dtype = DType::FP32, Device = CPU) {
        return randn(shape, std::random_device{}(), dtype);
    }

    /// A copy of ``values``, whose number must be that of the shape.
    template <class T>
    static Tensor from_vector(const Shape& shape, const std::vector<T>& values) {
        Tensor result = empty(shape, dtype_of<T>());
        if (static_cast<std::uint64_t>(shape.numel()) != values.size()) {
            throw UnsupportedTensor(std::to_string(values.size()) + " values do not fill shape " + shape.to_string());
        }
        T* elements = result.data<T>();
        for (std::size_t i = 0; i < values.size(); ++i) elements[i] = values[i];  // not memcpy: vector<bool>
        return result;
    }

    const Shape& shape() const noexcept { return shape_; }
    DType dtype() const noexcept { return dtype_; }
    Device device() const noexcept { return CPU; }
    int ndim() const noexcept { return shape_.ndim(); }
    std::int64_t numel() const noexcept { return shape_.numel(); }
    std::size_t nbytes() const { return static_cast<std::size_t>(shape_.numel()) * itemsize(dtype_); }
    bool is_writable() const noexcept { return !storage_ || storage_->is_writable(); }

    /// The elements; null if there are none. T is the C++ type of the dtype, or std::byte. Call this again after
    /// sending a loan: a store through the earlier pointer would still reach the segment and its readers. (A bool from
    /// a file or a worker may be a byte other than 0 and 1. Reading that as bool is undefined behaviour; read it as
    /// std::byte.)
    template <class T>
    const T* data() const {
        check_type<T>();
        return reinterpret_cast<const T*>(raw());
    }
    /// As above; a store through the pointer is SIGSEGV if the tensor is read-only.
    template <class T>
    T* data() {
        check_type<T>();
        return reinterpret_cast<T*>(raw());
    }
    /// The elements, to be written.
    ///
    /// @throws ReadOnlyTensor the tensor is read-only.
    template <class T>
    T* mutable_data() {
        if (!is_writable()) throw ReadOnlyTensor("this tensor belongs to its readers; write into its clone()");
        return data<T>();
    }
    const void* data_ptr() const { return raw(); }
    void* data_ptr() { return raw(); }

    /// The value of a tensor that has only one.
    template <class T>
    T item() const {
        if (numel() != 1) throw UnsupportedTensor("a tensor of shape " + shape_.to_string() + " is not one value");
        if constexpr (std::is_same_v<std::remove_cv_t<T>, bool>) {
            check_type<T>();
            return *data<std::byte>() != std::byte{0};
        } else {
            return *data<T>();
        }
    }

    template <class V>
    void fill(V value) {
        with_type(dtype_, [&](auto type) {
            using T = typename decltype(type)::type;
            const T element = detail::to_element<T>(value);
            T* elements = mutable_data<T>();
            for (std::int64_t i = 0; i < numel(); ++i) elements[i] = element;
        });
    }

    /// A copy that owns its elements.
    Tensor clone() const {
        Tensor result = empty(shape_, dtype_);
        if (storage_) std::memcpy(result.storage_->data(), raw(), nbytes());
        return result;
    }

    /// The same elements with another shape, which must have the same number of elements.
    Tensor reshape(const Shape& shape) const {
        if (shape.numel() != numel()) {
            throw UnsupportedTensor("shape " + shape_.to_string() + " cannot become " + shape.to_string());
        }
        return Tensor(shape, dtype_, storage_);
    }

    /// The elements as text; of more than 1000 only the corners.
    std::string to_string(int precision = 6) const;
    /// Print name, shape, dtype and elements to std::cout.
    void print(const std::string& name = "", int precision = 6) const;

    /// For the library.
    const std::shared_ptr<detail::Storage>& storage() const noexcept { return storage_; }

private:
    std::byte* raw() const { return storage_ ? storage_->data() : nullptr; }

    template <class T>
    void check_type() const {
        if constexpr (!std::is_same_v<std::remove_cv_t<T>, std::byte>) {
            if (dtype_of<T>() != dtype_) {
                throw UnsupportedTensor(std::string("the tensor is of ") + dtype_label(dtype_) + ", not of " +
                                        dtype_label(dtype_of<T>()));
            }
        }
    }

    Shape shape_;
    DType dtype_ = DType::FP32;
    std::shared_ptr<detail::Storage> storage_;
};

}  // namespace tr

#include "print.hpp"

#include "macros_on.hpp"

#endif  // TR_MMAP_TENSOR_HPP
