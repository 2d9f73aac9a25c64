// The CPU backend writes and reads tensor files.
#include "tech_renaissance/backend/backend_manager.h"
#include "tech_renaissance/backend/cpu/cpu_backend.h"
using namespace tr;

int main() {
    const std::string folder = std::getenv("TR_TEST_FOLDER");
    auto backend = BackendManager::instance().get_backend(CPU);
    Tensor tensor = Tensor::full(Shape(2, 3), 7.0f);
    dynamic_cast<CpuBackend*>(backend.get())->export_tensor(tensor, folder + "/x.tsr");
    std::cout << "bytes: " << std::filesystem::file_size(folder + "/x.tsr") << std::endl;
    Tensor loaded = dynamic_cast<CpuBackend*>(backend.get())->import_tensor(folder + "/x.tsr");
    loaded.data<float>()[0] = 1;  // it is the program's own
    std::cout << loaded.shape() << ' ' << loaded.data<float>()[0] << ' ' << loaded.data<float>()[5] << std::endl;

    // The static spelling, and the other order.
    CpuBackend::export_tensor(folder + "/y.tsr", backend->ones(Shape(5), DType::INT32));
    std::cout << CpuBackend::import_tensor(folder + "/y.tsr").shape() << std::endl;
    std::shared_ptr<Backend> base = BackendManager::get_cpu_backend();
    std::cout << base->name() << ' ' << base->device().to_string() << ' ' << (base->device() == CPU) << std::endl;
    try {
        CpuBackend::export_tensor(Tensor::zeros(Shape(2), DType::FP64), folder + "/z.tsr");
    } catch (const TRException& e) {
        std::cout << e.what() << std::endl;
    }
    return std::filesystem::exists(folder + "/z.tsr") ? 1 : 0;
}
