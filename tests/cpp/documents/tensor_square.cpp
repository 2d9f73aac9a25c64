// The request is written by hand, below WORKSPACE_PATH, while the session lives; the tensors go under names that both
// sides know. The document writes the request at once after start(), before the worker is there.
#include "tech_renaissance.h"
using namespace tr;

int main() {
    try {
        PyTorchSession session("torch_worker.py", "square_document", true);
        session.start();
        std::string request_file =
            std::string(WORKSPACE_PATH) + "/pytorch_session/tr_session_square_document/request.json";
        std::vector<float> test_values = {1.0f, 3.0f, 5.0f};
        for (size_t i = 0; i < test_values.size(); ++i) {
            Shape shape(1, 1, 2, 2);
            Tensor input_tensor = Tensor::full(shape, test_values[i], DType::FP32);
            session.send_tensor(input_tensor, "input");
            std::ofstream(request_file) << R"({"cmd": "tensor_square"})";
            Tensor result_tensor = session.recv_tensor("output", 60000);
            if (!(result_tensor.shape() == input_tensor.shape())) return 1;
            std::cout << result_tensor.shape() << ' ' << result_tensor.data<float>()[3] << std::endl;
        }
        // A request of the session's own, whose result is asked for by a name of the program's.
        session.send_request("add input input");
        std::cout << session.recv_tensor("result", 30000).data<float>()[0] << std::endl;
        try {
            session.recv_tensor("nothing", 1);
        } catch (const TRException& e) {
            Logger::get_instance().be_quiet();
            Logger::get_instance().info("not to be seen");
            std::cout << "nothing: " << std::string(e.what()).substr(0, 34) << std::endl;
        }
    } catch (const TRException& e) {
        Logger::error("PyTorchSession error: " + std::string(e.what()));
        return 2;
    }
    return 0;
}
