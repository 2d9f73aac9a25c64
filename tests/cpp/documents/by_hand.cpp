// Requests by hand with either spelling of the keys, between requests of the session's own, which go on.
#include "tech_renaissance/utils/python_session.h"
using namespace tr;

/// What response.json says, as soon as it has that text in it.
static std::string answer_with(const PythonSession& session, const std::string& text) {
    for (int i = 0; i < 60000; i++) {
        std::ifstream file(session.session_dir() + "/response.json");
        std::string line;
        if (std::getline(file, line) && line.find(text) != std::string::npos) return text;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return "no " + text;
}

int main() {
    PythonSession session("worker.py", "hand_document", true);
    session.start();
    session.send_tensor(Tensor::full(Shape(2, 2), 3.0f), "x");
    const std::string request_file =
        std::string(WORKSPACE_PATH) + "/python_session/tr_session_hand_document/request.json";
    for (int i = 0; i < 5; i++) {
        const std::string name = std::to_string(i);
        std::cout << session.fetch_response("hello own" + name, 60000) << ", ";
        std::ofstream(session.session_dir() + "/request.json") << R"({"cmd": "hello", "params": "hand)" + name + "\"}";
        std::cout << answer_with(session, "Hello Hand" + name) << ", ";
        std::ofstream(request_file) << R"({"command": "hi", "parameters": "hand)" + name + "\"}";
        std::cout << answer_with(session, "Hi Hand" + name) << ", ";
        std::cout << session.fetch_tensor("add x x", 30000).data<float>()[0] << std::endl;
    }
    // Both at once.
    for (int i = 0; i < 20; i++) {
        std::ofstream(request_file) << R"({"cmd": "hello", "params": "again"})";
        if (session.fetch_response("hi own", 30000) != "Hi Own") return 1;
    }
    session.please_exit();
    return 0;
}
