// A worker that ends by itself after a request to exit, and one that is ended.
#include "tech_renaissance.h"
using namespace tr;

static bool ends_by_itself() {
    PyTorchSession session("worker.py", "exit_document", true);
    session.start();
    session.send_request(R"({"cmd": "hello", "params": "world!"})");
    std::cout << "1: " << session.wait_for_response(60000) << std::endl;
    std::cout << "2: " << session.fetch_response(R"({"cmd": "hi", "params": "world!"})", 30000) << std::endl;
    session.send_request(R"({"cmd": "exit"})");
    for (int i = 0; i < 600 && session.is_alive(); i++) std::this_thread::sleep_for(std::chrono::milliseconds(100));
    return !session.is_alive();
}

static bool is_ended() {
    PythonSession session("worker.py", "terminate_document", true);
    session.start();
    std::cout << "alive: " << session.is_alive() << std::endl;
    session.terminate();
    session.join();
    return !session.is_alive();
}

int main() { return ends_by_itself() && is_ended() ? 0 : 1; }
