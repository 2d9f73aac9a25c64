// What recv_tensor takes, and what it does not. (Not in the documents, which call it only where all goes well.)
#include "tech_renaissance/utils/pytorch_session.h"
using namespace tr;

template <class Action>
static std::string error_of(Action action) {
    try {
        action();
    } catch (const BadTag&) {
        return "BadTag";
    } catch (const ResponseTimeout&) {
        return "ResponseTimeout";
    } catch (const TSRFormatError& e) {
        return std::string("TSRFormatError ") + fault_name(e.fault);
    } catch (const UnexpectedResponse& e) {
        return "UnexpectedResponse " + e.result;
    } catch (const UnknownCommand&) {
        return "UnknownCommand";
    } catch (const WorkerDied&) {
        return "WorkerDied";
    } catch (const SessionNotStarted&) {
        return "SessionNotStarted";
    }
    return "none";
}

int main() {
    PyTorchSession session("worker.py", "receive_document", true);
    std::cout << error_of([&] { session.recv_tensor("x", 1); }) << std::endl;
    session.start();
    std::cout << error_of([&] { session.recv_tensor("../x", 1); }) << std::endl;

    // A tag of the controller's is not what the worker sends under that name; it stays.
    session.send_tensor(Tensor::full(Shape(2), 5.0f), "own");
    std::cout << error_of([&] { session.recv_tensor("own", 20); }) << std::endl;
    std::cout << session.fetch_tensor("add own own", 60000).data<float>()[1] << std::endl;

    // Answers without a tensor.
    session.send_request("hello text");
    std::cout << error_of([&] { session.recv_tensor("output", 30000); }) << std::endl;
    session.send_request("no_such_command");
    std::cout << error_of([&] { session.recv_tensor("output", 30000); }) << std::endl;
    std::cout << (session.wait_response(1).empty() ? "no response" : "a response") << std::endl;

    // A file that a script writes in two steps: half of it is not taken.
    const std::string path = session.session_dir() + "/steps.tsr";
    CpuBackend::export_tensor(Tensor::full(Shape(1000), 7.0f), path + ".whole");
    std::string whole(4064, ' ');
    std::ifstream(path + ".whole", std::ios::binary).read(&whole[0], 4064);
    std::filesystem::remove(path + ".whole");
    std::ofstream file(path, std::ios::binary);
    file << whole.substr(0, 2000) << std::flush;
    std::cout << error_of([&] { session.recv_tensor("steps", 20); }) << std::endl;
    auto future = std::async(std::launch::async, [&] { return session.recv_tensor("steps", 30000); });
    file << whole.substr(2000) << std::flush;
    std::cout << future.get().data<float>()[999] << ' ' << std::filesystem::exists(path) << std::endl;

    // The response to a request whose tensor came as a file is not the response to the next one.
    session.send_tensor(Tensor::full(Shape(1, 1, 1, 1), 3.0f), "input");
    session.send_request("tensor_square");
    std::cout << session.recv_tensor("output", 30000).data<float>()[0] << std::endl;
    session.send_request("add own own");
    std::cout << session.recv_tensor("result", 30000).data<float>()[1] << std::endl;

    // Nor is there one to a request that was written by hand, while the worker still serves that.
    session.send_tensor(Tensor::full(Shape(1, 1, 1, 1), 4.0f), "input");
    std::ofstream(session.session_dir() + "/request.json") << R"({"cmd": "tensor_square", "params": "0.3"})";
    std::cout << session.recv_tensor("output", 30000).data<float>()[0] << std::endl;
    session.send_request("add own own");
    std::cout << session.recv_tensor("result", 30000).data<float>()[0] << std::endl;

    session.send_request("exit");
    std::cout << error_of([&] { session.recv_tensor("output", 30000); }) << std::endl;
    return 0;
}
