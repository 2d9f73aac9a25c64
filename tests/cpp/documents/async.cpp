// A result is waited for in another thread.
#include "tech_renaissance.h"
using namespace tr;

std::future<Tensor> async_fetch_tensor(const PythonSession& session, uint32_t timeout_ms) {
    return std::async(std::launch::async, [&session, timeout_ms]() { return session.wait_for_tensor(timeout_ms); });
}

int main() {
    PythonSession session("worker.py", "async_document", true);
    session.start();
    session.send_tensor(Tensor::full(Shape(2, 3), 2.0f), "a");
    session.send_tensor(Tensor::full(Shape(3, 2), 1.0f), "b");

    session.send_request("matmul a b");
    auto future = std::async(std::launch::async, [&session]() { return session.wait_for_tensor(60000); });
    Tensor result = future.get();
    std::cout << result.shape() << ' ' << result.data<float>()[0] << std::endl;

    session.send_request("add a a");
    std::cout << async_fetch_tensor(session, 30000).get().data<float>()[5] << std::endl;

    std::vector<std::future<Tensor>> futures;
    for (int i = 0; i < 4; i++) {
        futures.push_back(
            std::async(std::launch::async, [&session]() { return session.fetch_tensor("add a a", 30000); }));
    }
    float total = 0;
    for (auto& each : futures) total += each.get().data<float>()[0];
    std::cout << total << std::endl;
    session.please_exit();
    return 0;
}
