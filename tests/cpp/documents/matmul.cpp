// Two tensors go to the worker that ships with the package, and their product comes back.
#include "tech_renaissance.h"
using namespace tr;

int main() {
    auto backend = BackendManager::get_cpu_backend();
    std::cout << backend->name() << std::endl;

    PythonSession session("default", "matmul_document", true);
    session.start();
    session.wait_until_ready(60000);

    Tensor a = Tensor::full(Shape(4, 3), 1.5f, DType::FP32, tr::CPU);
    Tensor b = backend->full(Shape(3, 5), 2.0f);
    session.send_tensor(a, "input_a");
    session.send_tensor(b, "input_b");
    session.send_request("matmul input_a input_b");
    Tensor result = session.wait_for_tensor(30000);
    std::cout << "shape: " << result.shape().to_string() << std::endl;
    result.print("result");

    Tensor random = backend->randn(Shape(2, 3));
    session.send_tensor(random, "r");
    std::cout << "random: " << session.fetch_tensor("square r").shape() << std::endl;

    session.please_exit();
    return 0;
}
