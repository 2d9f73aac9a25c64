// calculate() sends, requests and receives in one call.
#include "tech_renaissance.h"
using namespace tr;

int main() {
    PythonSession session("default", "calculate_document", true);
    session.start(500);  // there a pause; here it ends as soon as the worker is ready
    std::vector<std::pair<Tensor, Tensor>> test_pairs;
    for (uint64_t i = 0; i < 3; ++i) {
        test_pairs.emplace_back(Tensor::randn(Shape(8, 16), i + 1000), Tensor::randn(Shape(16, 4), i + 2000));
    }
    for (size_t i = 0; i < test_pairs.size(); ++i) {
        auto& [a, b] = test_pairs[i];
        Tensor result = session.calculate("matmul", a, b, 60000);
        float expected = 0;
        for (int k = 0; k < 16; ++k) expected += a.data<float>()[k] * b.data<float>()[4 * k];
        std::cout << result.shape() << " on " << result.device().to_string() << ": "
                  << (std::abs(result.data<float>()[0] - expected) < 1e-4f ? "YES" : "NO") << std::endl;
    }
    Tensor x = Tensor::full(Shape(2, 2), -1.0f);
    std::cout << std::fixed << std::setprecision(1) << session.calculate("relu", x).data<float>()[0] << std::endl;
#ifdef TR_BUILD_PYTHON_SESSION
    std::cout << "with Python sessions" << std::endl;
#endif
#ifdef TR_BUILD_PYTORCH_SESSION
    std::cout << "with PyTorch sessions" << std::endl;
#endif
    session.please_exit();
    return 0;
}
