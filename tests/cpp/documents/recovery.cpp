// What a program does when a result does not come. The document's own lines use `result` outside of the block in which
// it is declared, so they do not compile; this is the nearest that does.
#include "tech_renaissance.h"
using namespace tr;

int main() {
    PythonSession session("worker.py", "recovery_document", true);
    session.start();
    session.wait_until_ready(60000);
    session.send_tensor(Tensor::full(Shape(2, 2), 3.0f), "a");
    Tensor result;
    try {
        session.send_request("sleep 600");
        result = session.wait_for_tensor(50);
        return 1;
    } catch (const TRException& e) {
        std::cout << "no tensor" << std::endl;
        session.terminate();
        std::cout << "alive: " << session.is_alive() << std::endl;
        session.start();
        session.wait_until_ready(60000);
        session.send_request("add a a");  // the tag is still known
        result = session.wait_for_tensor(30000);
    }
    std::cout << result.shape() << ": " << result.data<float>()[0] << std::endl;
    try {
        session.fetch_tensor("hello text", 30000);
        return 2;
    } catch (const std::exception& e) {
        std::cout << "not a tensor: " << (std::string(e.what()).find("Hello Text") != std::string::npos) << std::endl;
    }
    std::cout << session.fetch_response("hi again", 30000) << std::endl;
    session.please_exit(30000, true);
    return 0;
}
