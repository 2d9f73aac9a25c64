// The original framework's program: tags, a request, and a tensor that comes back. Runs as it was written.
#include "tech_renaissance.h"
using namespace tr;
int main() {
    PythonSession session("default", "matmul_demo");
    session.start();
    session.wait_until_ready(5000);
    Tensor tensor_a = Tensor::full(Shape(4, 3), 1.5f, DType::FP32, tr::CPU);
    Tensor tensor_b = Tensor::full(Shape(3, 5), 2.0f, DType::FP32, tr::CPU);
    session.send_tensor(tensor_a, "input_a");
    session.send_tensor(tensor_b, "input_b");
    session.send_request("matmul input_a input_b");
    Tensor result = session.wait_for_tensor(10000);
    std::cout << result.shape().to_string() << std::endl;
    result.print("result");
    session.please_exit(5000, true);
}
