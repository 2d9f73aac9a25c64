// Many tensors, many requests, and functions that only use a session: they take it by const reference.
#include "tech_renaissance/utils/python_session.h"
using namespace tr;

void batch_send_tensors(const PythonSession& session, const std::vector<Tensor>& tensors,
                        const std::vector<std::string>& tags) {
    for (size_t i = 0; i < tensors.size(); ++i) session.send_tensor(tensors[i], tags[i]);
}

std::vector<std::string> batch_requests(const PythonSession& session, const std::vector<std::string>& messages) {
    std::vector<std::string> responses;
    for (const auto& message : messages) {
        session.send_request(message);
        responses.push_back(session.wait_for_response(30000));
    }
    return responses;
}

void describe(const PythonSession& session) {
    std::cout << session.session_id() << ": " << session.is_ready() << session.is_busy() << session.new_response()
              << session.wait_until_ready() << session.is_alive() << std::endl;
}

int main() {
    PythonSession session("worker.py", "batch_document", true);
    session.start();
    session.wait_until_ready(60000);
    describe(session);
    Tensor a = Tensor::full(Shape(2, 2), 1.0f), b = Tensor::full(Shape(2, 2), 2.0f);
    Tensor c = Tensor::full(Shape(2, 2), 4.0f);
    std::vector<Tensor> tensors = {a, b, c};
    std::vector<std::string> tags = {"input_a", "input_b", "input_c"};
    batch_send_tensors(session, tensors, tags);
    session.send_request("batch_process input_a input_b input_c");
    Tensor result = session.wait_for_tensor(30000);
    std::cout << result.shape() << ": " << result.data<float>()[3] << std::endl;
    for (const auto& response : batch_requests(session, {"hello one", "hi two"})) std::cout << response << std::endl;
    session.please_exit();
    return 0;
}
