// A text there and back, in three ways: one call; two calls with a wait between them; and a look at what is there.
#include "tech_renaissance.h"
using namespace tr;

int main() {
    PythonSession session("worker.py", "hello_document", true);
    try {
        session.start();
        if (!session.wait_until_ready(60000)) {
            std::cerr << "the worker is not ready" << std::endl;
            return 1;
        }
        std::cout << session.fetch_response("hello bob", 30000) << std::endl;

        session.send_request("hi eve");
        if (session.wait_until_ready(30000)) {
            std::cout << session.wait_for_response(30000) << std::endl;
        }

        session.send_request(R"({"cmd": "hello", "params": "json"})");
        session.wait_until_ok(30000);
        while (!session.new_response()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        std::cout << session.read_response() << std::endl;

        session.please_exit(30000, true);
    } catch (const std::exception& e) {
        std::cerr << "failed: " << e.what() << std::endl;
        session.terminate();
        return 1;
    }
    return 0;
}
