// The two styles of a tensor request, both in JSON: one call (A), and a request whose result is fetched later (B). The
// document asserts that a 4x5 matrix has the sizes n=1, c=1, h=4, w=5.
#include "tech_renaissance/utils/pytorch_session.h"

#include <iostream>

using namespace tr;

static bool style_a() {
    PyTorchSession session("torch_worker.py", "style_a_document", true);
    session.start();

    Tensor tensor_a = Tensor::full(Shape(4, 3), 1.5f, DType::FP32, tr::CPU);
    Tensor tensor_b = Tensor::full(Shape(3, 5), 2.0f, DType::FP32, tr::CPU);
    Shape shape_a = tensor_a.shape();
    std::cout << "shape_a: " << shape_a << std::endl;

    session.send_tensor(tensor_a, "a");
    session.send_tensor(tensor_b, "b");
    Tensor result = session.fetch_tensor(R"({"cmd": "matmul", "params": "a,b"})", 60000);
    std::cout << "first row: " << result.data<float>()[0] << ' ' << result.data<float>()[4] << std::endl;
    session.send_request(R"({"cmd": "exit"})");
    return result.numel() == 20 && result.shape().n() == 1 && result.shape().c() == 1 && result.shape().h() == 4 &&
           result.shape().w() == 5;
}

static bool style_b() {
    PyTorchSession session("worker.py", "style_b_document");
    session.be_quiet();
    session.start();

    Tensor tensor_a = Tensor::full(Shape(2, 3, 4, 5), 3.0f, DType::FP32, tr::CPU);
    Tensor tensor_b = Tensor::full(Shape(2, 3, 4, 5), 4.0f, DType::FP32, tr::CPU);
    session.send_tensor(tensor_a, "a");
    session.send_tensor(tensor_b, "b");
    session.send_request(R"({"cmd": "add", "params": "a,b"})");
    // The document sleeps for two seconds here, for work of its own.
    Tensor result = session.wait_for_tensor(60000);
    std::cout << "sum: " << result.shape() << " of " << result.data<float>()[119] << std::endl;
    session.send_request(R"({"cmd": "exit"})");
    return result.shape().n() == 2 && result.shape().c() == 3 && result.shape().h() == 4 && result.shape().w() == 5;
}

int main() {
    try {
        return style_a() && style_b() ? 0 : 1;
    } catch (const TRException& e) {
        std::cout << "exception: " << e.what() << std::endl;
        return 2;
    }
}
