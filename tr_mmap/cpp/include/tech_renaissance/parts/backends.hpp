// The original framework's backends, but only what concerns tensors and their files; they compute nothing. Part of
// tech_renaissance.h.
#ifndef TECH_RENAISSANCE_BACKENDS_HPP
#define TECH_RENAISSANCE_BACKENDS_HPP

#include "../../tr_mmap/macros_off.hpp"

#include <cstdint>
#include <memory>
#include <string>

#include "../../tr_mmap/dtype.hpp"
#include "../../tr_mmap/errors.hpp"
#include "../../tr_mmap/shape.hpp"
#include "../../tr_mmap/tensor.hpp"
#include "../../tr_mmap/tsr.hpp"

namespace tr {

/// Where tensors are made. There is only CpuBackend.
class Backend {
public:
    Backend() = default;
    Backend(const Backend&) = delete;
    Backend& operator=(const Backend&) = delete;
    virtual ~Backend() = default;
    virtual std::string name() const = 0;
    virtual Device device() const = 0;
};

/// Makes tensors, and reads and writes the original framework's files. All but name() and device() is static, so that
/// CpuBackend::import_tensor(path) and backend->import_tensor(path) mean the same.
class CpuBackend final : public Backend {
public:
    std::string name() const override { return "CpuBackend"; }
    Device device() const override { return CPU; }

    static Tensor empty(const Shape& shape, DType dtype = DType::FP32) { return Tensor::empty(shape, dtype); }
    static Tensor zeros(const Shape& shape, DType dtype = DType::FP32) { return Tensor::zeros(shape, dtype); }
    static Tensor ones(const Shape& shape, DType dtype = DType::FP32) { return Tensor::ones(shape, dtype); }
    template <class V>
    static Tensor full(const Shape& shape, V value, DType dtype = DType::FP32) {
        return Tensor::full(shape, value, dtype);
    }
    static Tensor randn(const Shape& shape) { return Tensor::randn(shape); }
    static Tensor randn(const Shape& shape, std::uint64_t seed, DType dtype = DType::FP32) {
        return Tensor::randn(shape, seed, dtype);
    }
    static Tensor copy(const Tensor& tensor) { return tensor.clone(); }

    /// Write a file that the original framework reads: TSR v1, of FP32, INT8 or INT32.
    ///
    /// @throws UnsupportedTensor another dtype.
    /// @throws TSRFormatError more than four dimensions.
    static void export_tensor(const Tensor& tensor, const std::string& path) {
        const DType dtype = tensor.dtype();
        if (dtype != DType::FP32 && dtype != DType::INT8 && dtype != DType::INT32) {
            throw UnsupportedTensor(std::string("the original framework reads FP32, INT8 and INT32, not ") +
                                    dtype_label(dtype) + "; convert the tensor, or write it with save_tsr()");
        }
        save_tsr(path, tensor, 1);
    }
    static void export_tensor(const std::string& path, const Tensor& tensor) { export_tensor(tensor, path); }

    /// Read a file of any layout into a tensor of its own, which may be written.
    static Tensor import_tensor(const std::string& path) { return load_tsr(path).clone(); }
};

/// Hands out the backend.
class BackendManager {
public:
    BackendManager(const BackendManager&) = delete;
    BackendManager& operator=(const BackendManager&) = delete;

    static BackendManager& instance() {
        static BackendManager& only = *new BackendManager;  // never destroyed, like the backend
        return only;
    }
    static std::shared_ptr<CpuBackend> get_cpu_backend() { return instance().cpu_; }
    static std::shared_ptr<CpuBackend> get_backend(Device = CPU) { return instance().cpu_; }
    static bool is_registered(Device) noexcept { return true; }

private:
    BackendManager() = default;
    ~BackendManager() = default;

    const std::shared_ptr<CpuBackend> cpu_ = std::make_shared<CpuBackend>();
};

}  // namespace tr

#include "../../tr_mmap/macros_on.hpp"

#endif  // TECH_RENAISSANCE_BACKENDS_HPP
